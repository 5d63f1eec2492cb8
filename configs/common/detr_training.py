"""How the DETR family trains: AdamW with a slower backbone, clipping at 0.1, DETR's augmentation, empty images kept."""

from .data import dataloader, detr
from .optim import adamw as optimizer
from .schedules import step as lr_multiplier
from .train import train

dataloader.train.mapper.augmentations = detr
dataloader.train.filter_empty = False
optimizer.params.lr_factors = {r"^backbone\.bottom_up\.": 0.1}
train.clip_grad = dict(kind="norm", value=0.1)
train.max_epochs = 12.0
lr_multiplier.unit = "epoch"
lr_multiplier.milestones = [11]
