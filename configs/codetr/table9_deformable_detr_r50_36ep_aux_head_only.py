"""Table 9: Co-Deformable-DETR: the ATSS head trains the encoder, no positive queries, 36 epochs."""

from .table2_deformable_detr_r50_36ep_k1 import dataloader, lr_multiplier, model, optimizer, train

model.heads = [dict(name="atss", queries=False)]
