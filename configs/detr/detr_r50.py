"""DETR R50 as its authors train it: 500 epochs, batch 64; 42.0 AP on COCO val."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.detr import model

dataloader.train.total_batch_size = train.reference_batch_size = 64
train.max_epochs = 500.0
lr_multiplier.milestones = [400]
