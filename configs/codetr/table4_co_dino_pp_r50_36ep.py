"""Table 4: Co-DINO++ R50: large-scale jitter and copy-paste on 1024 pixels, 36 epochs."""

from .table4_co_dino_pp_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

train.max_epochs = 36.0
lr_multiplier.milestones = [30]
