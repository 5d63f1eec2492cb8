"""Table 4: METR with the text encoder's embeddings left as they are."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.learnable_text = False
