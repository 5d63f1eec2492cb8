"""Table 2: METR, 12 epochs on COCO (also METR-Single on COCO)."""

from ..metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train
