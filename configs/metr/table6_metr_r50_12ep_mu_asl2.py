"""Table 6: METR with the asymmetric loss weighted by 2."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.asl_weight = 2.0
