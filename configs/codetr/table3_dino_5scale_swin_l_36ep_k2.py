"""Table 3: Co-DINO Swin-L, K = 2: ATSS and Faster R-CNN, focal loss, no suppression, 36 epochs."""

from ..common.models.co_common import K2, co_dino
from .table3_dino_5scale_swin_l_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_dino(model, K2, quality=False)
