"""Table 8: Co-Deformable-DETR with GFL alone, 36 epochs."""

from ..common.models.co_common import co_deformable
from .table2_deformable_detr_r50_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_deformable(model, ("gfl",))
