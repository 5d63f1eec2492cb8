"""Table 2 row 5, ScaleDet-B with OpenCLIP (also Table 7, supplement Table A and Figures A, B)."""

from ..common.data import resize_800
from ..common.models.centernet2 import openclip, swin_b
from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = swin_b
model.text_encoder = openclip
dataloader.train.mapper.augmentations.size = 896
dataloader.test.mapper.augmentations = resize_800
train.output_dir = "./output/scaledet/swin_b_openclip"
