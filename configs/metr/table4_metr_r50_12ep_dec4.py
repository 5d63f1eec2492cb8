"""Table 4: METR with 4 decoder layers: the parameters of DINO."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.decoder.num_layers = 4
