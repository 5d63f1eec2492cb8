"""Table 6: METR with 15 categories sharing the 100 queries."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.top_k = 15
