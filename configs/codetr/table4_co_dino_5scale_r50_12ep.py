"""Table 4: Co-DINO R50: quality focal loss and soft-NMS, 12 epochs."""

from ..common.models.co_common import co_dino
from .table3_dino_5scale_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_dino(model)
