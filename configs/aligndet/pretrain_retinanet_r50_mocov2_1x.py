"""Section 4.1: box-domain pre-training of RetinaNet on a MoCo v2 ResNet-50."""

from .common.recipe import pretrain, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "retinanet")
ssl_resnet(model.adapter.detector, "resnet50_mocov2", unfrozen=False)
