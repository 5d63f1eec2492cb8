"""Faster R-CNN R50, 90k, aligned by regression only (table 10)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "faster_rcnn", "1x", aligned="pretrain_faster_rcnn_r50_reg_only_1x"
)
