"""Table 4: METR without category extraction: trained with the true categories, tested with all of them."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.cem = None
