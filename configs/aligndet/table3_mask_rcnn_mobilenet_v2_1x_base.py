"""Mask R-CNN, MobileNetV2, 1x, not aligned (table 3)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "mask_rcnn", "1x")
model.backbone.bottom_up.name = "mobilenetv2_100"
