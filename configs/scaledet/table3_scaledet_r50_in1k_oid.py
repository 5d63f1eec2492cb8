"""Table 3, ScaleDet single oid: UniDet's 2x schedule of single datasets."""

from .table3_scaledet_r50_in1k_coco_o365_oid import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["openimages_v6_train"]
dataloader.test_datasets = ["openimages_v6_val"]
lr_multiplier.milestones = [120000, 160000]
train.update(max_iter=180000, output_dir="./output/scaledet/table3_r50_oid")
