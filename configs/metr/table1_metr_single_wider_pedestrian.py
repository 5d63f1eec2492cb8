"""Table 1: METR on WIDER Pedestrian alone: one category has all 100 queries."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["wider_pedestrian_train"]
dataloader.test_datasets = ["wider_pedestrian_val"]
