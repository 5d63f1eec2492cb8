"""CBNetV2 with two Swin-L, 1x, half precision, not aligned (table 3)."""

from .common.recipe import adamw, finetune, wide_scale

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "cbnet", "1x")
optimizer = adamw(1e-4, 0.05)
wide_scale(dataloader)
lr_multiplier.warmup_iters = 1000
train.amp.dtype = "float16"
