"""Table 2: Deformable-DETR, K = 0: 12 epochs."""

from .table2_deformable_detr_r50_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

train.max_epochs = 12.0
lr_multiplier.milestones = [11]
