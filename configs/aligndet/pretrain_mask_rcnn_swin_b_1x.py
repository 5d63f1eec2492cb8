"""Section 4.1: box-domain pre-training of Mask R-CNN, Swin-B."""

from .common.recipe import adamw, pretrain, swin

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "mask_rcnn")
optimizer = adamw(1e-4, 0.05, swin=False)
swin(model.adapter.detector, "swin_base_patch4_window7_224.ms_in1k", 0.0)
lr_multiplier.warmup_iters = 1000
