"""Table 1, ScaleDet L,C,O365 (also Table 4, Figures 3 and 4)."""

from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["lvis_v1_train", "coco_2017_train", "objects365_v2_train"]
train.update(max_iter=400000, output_dir="./output/scaledet/r50_l_c_o365")
