"""Mask R-CNN R50, 2x, not aligned (table 7)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "mask_rcnn", "2x")
