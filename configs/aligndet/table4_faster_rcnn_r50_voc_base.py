"""Faster R-CNN R50 on Pascal VOC 07+12, 12k, not aligned on COCO (table 4)."""

from .common.recipe import finetune, voc

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "faster_rcnn", "12k")
voc(model, dataloader)
