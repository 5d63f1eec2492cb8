"""Mask R-CNN, ResNet-18, 1x, aligned (table 3)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "mask_rcnn", "1x", aligned="pretrain_mask_rcnn_r18_1x"
)
model.backbone.bottom_up.name = "resnet18.tv_in1k"
