"""RetinaNet on a PixPro ResNet-50, 1x, multi-scale, not aligned (table 5)."""

from .common.recipe import finetune, multi_scale, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "retinanet", "1x")
ssl_resnet(model, "resnet50_pixpro", unfrozen=True)
multi_scale(dataloader)
