"""Table 3: DN-DAB-Deformable-DETR, 300 queries, 50 epochs, batch 16."""

from ..common.models.dn_dab_deformable_detr import model
from .table3_deformable_detr_r50_50ep import dataloader, lr_multiplier, optimizer, train
