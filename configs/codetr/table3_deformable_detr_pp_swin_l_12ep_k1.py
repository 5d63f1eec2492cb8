"""Table 3: Co-Deformable-DETR++ Swin-L, K = 1: ATSS, 12 epochs."""

from ..common.models.co_common import K1, co_deformable
from .table3_deformable_detr_pp_swin_l_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_deformable(model, K1, head_embedding="vector")
