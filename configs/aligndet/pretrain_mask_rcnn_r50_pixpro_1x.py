"""Section 4.1: box-domain pre-training of Mask R-CNN on a PixPro ResNet-50."""

from .common.recipe import pretrain, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "mask_rcnn")
ssl_resnet(model.adapter.detector, "resnet50_pixpro", unfrozen=False)
