"""Table 2 row 4, ScaleDet-B with CLIP."""

from ..common.data import resize_800
from ..common.models.centernet2 import swin_b
from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = swin_b
dataloader.train.mapper.augmentations.size = 896
dataloader.test.mapper.augmentations = resize_800
train.output_dir = "./output/scaledet/swin_b_clip"
