"""METR-R50 on COCO, 12 epochs, 8 x 1 images: the base of every row."""

from .common.detr_training import dataloader, lr_multiplier, optimizer, train
from .common.models.metr import model

dataloader.train.update(total_batch_size=8, merge="name")
train.reference_batch_size = 8
