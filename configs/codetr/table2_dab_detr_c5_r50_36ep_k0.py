"""Table 2: DAB-DETR-C5, K = 0: 36 epochs, batch 16."""

from ..common.models.dab_detr import model
from .table2_conditional_detr_c5_r50_36ep_k0 import dataloader, lr_multiplier, optimizer, train
