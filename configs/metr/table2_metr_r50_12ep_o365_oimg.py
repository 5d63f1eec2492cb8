"""Table 2: METR fine-tuned from O365 + OpenImages with learning-rate strategy S3 (the layer decay of table 5)."""

from metr.transfer import LR_STRATEGIES

from .table5_metr_r50_12ep_o365_oimg_default_lr import dataloader, lr_multiplier, model, optimizer, train

optimizer.params.lr_factors = LR_STRATEGIES["S3"]
