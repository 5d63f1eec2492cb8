"""Faster R-CNN R50, 90k, only neck aligned (table 9)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "faster_rcnn", "1x", aligned="pretrain_faster_rcnn_r50_1x", modules="_NECK"
)
