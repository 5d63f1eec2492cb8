"""Supplementary table 2: DINO fine-tuned from Objects365 with learning-rate strategy S3."""

from metr.transfer import LR_STRATEGIES

from .table2_dino_r50_12ep_o365 import dataloader, lr_multiplier, model, optimizer, train

optimizer.params.lr_factors = LR_STRATEGIES["S3"]
