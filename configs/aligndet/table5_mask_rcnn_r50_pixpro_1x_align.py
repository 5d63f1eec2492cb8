"""Mask R-CNN on a PixPro ResNet-50, 1x, multi-scale, aligned (table 5)."""

from .common.recipe import finetune, multi_scale, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "mask_rcnn", "1x", aligned="pretrain_mask_rcnn_r50_pixpro_1x"
)
ssl_resnet(model, "resnet50_pixpro", unfrozen=True)
multi_scale(dataloader)
optimizer.update(lr=0.02, weight_decay=1e-4)
