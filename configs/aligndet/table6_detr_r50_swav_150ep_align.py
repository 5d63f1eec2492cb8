"""DETR on a SwAV ResNet-50, 150 epochs, aligned (table 6)."""

from .common.recipe import finetune, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "detr", "150ep", aligned="pretrain_detr_r50_swav_50ep"
)
ssl_resnet(model, "resnet50_swav", unfrozen=True)
