"""Section 4.2: DINO with 100 queries pre-trained on Objects365, 4 epochs."""

from .table2_dino_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["objects365_v2_train"]
dataloader.test_datasets = []
train.max_epochs = 4.0
lr_multiplier.milestones = [3]
train.output_dir = "./output/pretrain_dino_r50_o365_4ep"
