"""The headline run: ScaleDet-B with OpenCLIP on LVIS, COCO, Objects365 and OpenImages (Table 2, row 5)."""

from .scaledet.table2_scaledet_swin_b_openclip import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/scaledet_swinb"
