"""DETR on a supervised ResNet-50, 150 epochs, aligned (table 6)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "detr", "150ep", aligned="pretrain_detr_r50_50ep"
)
