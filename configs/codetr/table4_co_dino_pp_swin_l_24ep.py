"""Table 4: Co-DINO++ Swin-L: large-scale jitter and copy-paste on 1280 pixels, 24 epochs."""

from .common.lsj import lsj
from .table4_co_dino_5scale_swin_l_24ep import dataloader, lr_multiplier, model, optimizer, train

lsj(dataloader, 1280)
model.backbone.bottom_up.drop_path_rate = 0.5
