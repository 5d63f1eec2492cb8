"""DETR R50, 750k iterations, not aligned (table 2): `data.percent` 1, 5, 10, 20 or 100, `data.fold` 1 to 5."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(__file__, "detr", "100ep")
