"""DINO R50 with 4 scales as its authors train it: 900 queries, 12 epochs, batch 16; 49.0 AP on COCO val."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.dino import model

train.reference_batch_size = 16
