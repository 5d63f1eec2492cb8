"""Supplementary table 1: the detector fine-tuned from O365 + OpenImages on 448 x 448 images."""

from detectron2.config import LazyCall as L

from polydet.data.augmentations import fixed_resize

from .table2_metr_r50_12ep_o365_oimg import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.mapper.augmentations = L(fixed_resize)(height=448, width=448)
