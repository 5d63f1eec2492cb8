"""Section 4.2: METR pre-trained on OpenImages V4, 4 epochs."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["openimages_v4_train"]
dataloader.test_datasets = []
train.max_epochs = 4.0
lr_multiplier.milestones = [3]
train.output_dir = "./output/pretrain_metr_r50_oimg_4ep"
