"""Table 3: Co-DINO R50, K = 1: ATSS, focal loss, no suppression, 12 epochs."""

from ..common.models.co_common import K1, co_dino
from .table3_dino_5scale_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_dino(model, K1, quality=False)
