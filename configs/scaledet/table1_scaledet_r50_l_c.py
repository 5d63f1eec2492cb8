"""Table 1, ScaleDet L,C (also Tables 4 and 8, Figures 3 and 4)."""

from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.update(datasets=["lvis_v1_train", "coco_2017_train"], total_batch_size=64)
train.update(max_iter=90000, reference_batch_size=64, output_dir="./output/scaledet/r50_l_c")
