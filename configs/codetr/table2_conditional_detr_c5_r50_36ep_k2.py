"""Table 2: Co-Conditional-DETR-C5, K = 2: ATSS and Faster R-CNN, 36 epochs."""

from ..common.models.co_common import K2, collaborative
from .table2_conditional_detr_c5_r50_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

collaborative(model, K2)
