"""Table 4: Co-DINO Swin-L: quality focal loss and soft-NMS, 24 epochs."""

from ..common.models.co_common import co_dino
from .table3_dino_5scale_swin_l_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_dino(model)
model.backbone.bottom_up.drop_path_rate = 0.5
train.max_epochs = 24.0
lr_multiplier.milestones = [20]
