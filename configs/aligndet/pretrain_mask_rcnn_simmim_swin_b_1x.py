"""Section 4.1: box-domain pre-training of Mask R-CNN on SimMIM's Swin-B, batch 32."""

from .common.recipe import WEIGHTS, adamw, pretrain, swin

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "mask_rcnn")
optimizer = adamw(6e-5, 0.05, swin=False)
swin(model.adapter.detector, "swin_base_patch4_window7_224", 0.0)
lr_multiplier.warmup_iters = 1000
model.adapter.detector.backbone.bottom_up.weights = f"{WEIGHTS}/swin_base_simmim.safetensors"
dataloader.train.total_batch_size = train.reference_batch_size = 32
train.max_iter = 45_000
