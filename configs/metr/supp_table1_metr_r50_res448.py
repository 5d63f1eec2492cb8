"""The detector of table 2 as a classifier of 448 x 448 images; evaluate with tools/evaluate_classification.py."""

from detectron2.config import LazyCall as L

from polydet.data.augmentations import fixed_resize

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.mapper.augmentations = L(fixed_resize)(height=448, width=448)
