"""Mask R-CNN on SimMIM's Swin-B, 3x at batch 32, not aligned (table 3)."""

from .common.recipe import WEIGHTS, adamw, finetune, jitter_1024, swin

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "mask_rcnn", "3x")
optimizer = adamw(6e-5, 0.05)
swin(model, "swin_base_patch4_window7_224", 0.2)
jitter_1024(dataloader)
model.backbone.bottom_up.weights = f"{WEIGHTS}/swin_base_simmim.safetensors"
dataloader.train.total_batch_size = train.reference_batch_size = 32
train.max_iter = 135_000
lr_multiplier.warmup_iters = 1000
