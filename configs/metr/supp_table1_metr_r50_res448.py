"""Supplementary table 1: the detector of table 2 on 448 x 448 images; see tools/evaluate_classification.py."""

from detectron2.config import LazyCall as L

from polydet.data.augmentations import fixed_resize

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.mapper.augmentations = L(fixed_resize)(height=448, width=448)
