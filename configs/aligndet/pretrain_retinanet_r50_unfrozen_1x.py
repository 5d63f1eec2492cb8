"""Pre-training of RetinaNet, backbone included (table 11)."""

from .common.recipe import pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "retinanet", freeze_backbone=False)
