"""Table 4: Co-DINO++ R50: large-scale jitter and copy-paste on 1024 pixels, 12 epochs."""

from .common.lsj import lsj
from .table4_co_dino_5scale_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

lsj(dataloader, 1024)
