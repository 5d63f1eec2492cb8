"""Mask R-CNN R50, 2x, aligned (table 7)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "mask_rcnn", "2x", aligned="pretrain_mask_rcnn_r50_1x"
)
