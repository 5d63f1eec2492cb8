"""Table 2: Co-Deformable-DETR, K = 2: ATSS and Faster R-CNN, 36 epochs."""

from ..common.models.co_common import K2, co_deformable
from .table2_deformable_detr_r50_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_deformable(model, K2)
