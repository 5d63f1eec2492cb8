"""Supplementary table 2: METR fine-tuned with learning-rate strategy S2."""

from metr.transfer import LR_STRATEGIES

from .table5_metr_r50_12ep_o365_oimg_default_lr import dataloader, lr_multiplier, model, optimizer, train

optimizer.params.lr_factors = LR_STRATEGIES["S2"]
