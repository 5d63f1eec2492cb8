"""CBNetV2 with two Swin-L, 1x at batch 128, half precision, aligned (table 3)."""

from .common.recipe import adamw, finetune, wide_scale

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "cbnet", "1x", aligned="pretrain_cbnetv2_swin_l_1x"
)
optimizer = adamw(8e-4, 2.5e-3)
wide_scale(dataloader)
lr_multiplier.warmup_iters = 1000
train.amp.dtype = "float16"
dataloader.train.total_batch_size = train.reference_batch_size = 128
train.max_iter = 11_250
