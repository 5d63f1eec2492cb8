"""Section 4.2: METR pre-trained on Objects365 and OpenImages V4 together, 4 epochs."""

from .pretrain_metr_r50_oimg_4ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["objects365_v2_train", "openimages_v4_train"]
train.output_dir = "./output/pretrain_metr_r50_o365_oimg_4ep"
