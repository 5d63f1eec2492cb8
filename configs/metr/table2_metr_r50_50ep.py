"""Table 2: METR, 50 epochs."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

train.max_epochs = 50.0
lr_multiplier.milestones = [40]
