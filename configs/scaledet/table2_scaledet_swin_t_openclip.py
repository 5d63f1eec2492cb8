"""Table 2 row 3, ScaleDet-T with OpenCLIP (also Table 7)."""

from ..common.data import resize_800
from ..common.models.centernet2 import openclip, swin_t
from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = swin_t
model.text_encoder = openclip
dataloader.train.mapper.augmentations.size = 896
dataloader.test.mapper.augmentations = resize_800
train.output_dir = "./output/scaledet/swin_t_openclip"
