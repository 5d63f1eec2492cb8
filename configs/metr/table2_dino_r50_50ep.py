"""Table 2: DINO-4scale with 100 queries, 50 epochs."""

from .table2_dino_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

train.max_epochs = 50.0
lr_multiplier.milestones = [40]
