"""Conditional DETR R50 as its authors train it: 50 epochs, batch 16; 40.9 AP on COCO val."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.conditional_detr import model

train.reference_batch_size = 16
train.max_epochs = 50.0
lr_multiplier.milestones = [40]
