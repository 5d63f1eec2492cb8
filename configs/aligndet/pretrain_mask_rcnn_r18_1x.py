"""Section 4.1: box-domain pre-training of Mask R-CNN, ResNet-18."""

from .common.recipe import pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "mask_rcnn")
model.adapter.detector.backbone.bottom_up.name = "resnet18.tv_in1k"
