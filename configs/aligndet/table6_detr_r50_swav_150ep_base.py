"""DETR on a SwAV ResNet-50, 150 epochs, not aligned (table 6)."""

from .common.recipe import finetune, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "detr", "150ep")
ssl_resnet(model, "resnet50_swav", unfrozen=True)
