"""Deformable-DETR R50 as its authors train it: 50 epochs, batch 32; 44.5 AP on COCO val."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.deformable_detr import model

dataloader.train.total_batch_size = train.reference_batch_size = 32
optimizer.lr = 2e-4
optimizer.params.lr_factors = {r"^backbone\.bottom_up\.": 0.1, r"sampling_offsets|queries\.reference": 0.1}
train.max_epochs = 50.0
lr_multiplier.milestones = [40]
