"""Co-DINO Swin-L of the release, from Objects365: canvas of 1536, 1000 detections an image; 64.5 AP on LVIS minival."""

from ..codetr.common.lsj import lsj
from ..codetr.table6_co_dino_pp_swin_l_lvis import dataloader, lr_multiplier, model, optimizer, train

lsj(dataloader, 1536)
model.postprocess.max_detections = 1000
train.max_epochs = 16.0
