"""Mask R-CNN, Swin-S, 1x, aligned (table 3)."""

from .common.recipe import adamw, finetune, swin, swin_augmentation

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "mask_rcnn", "1x", aligned="pretrain_mask_rcnn_swin_s_1x"
)
optimizer = adamw(1e-4, 0.01)
swin(model, "swin_small_patch4_window7_224.ms_in1k", 0.2)
swin_augmentation(dataloader)
lr_multiplier.warmup_iters = 1000
