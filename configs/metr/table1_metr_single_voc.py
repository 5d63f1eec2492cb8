"""Table 1: METR on VOC 07+12 alone: 20 categories, 5 queries each."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["voc_0712_trainval"]
dataloader.test_datasets = ["voc_2007_test"]
