"""Section 4.1: box-domain pre-training of Mask R-CNN, MobileNetV2."""

from .common.recipe import pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "mask_rcnn")
model.adapter.detector.backbone.bottom_up.name = "mobilenetv2_100"
