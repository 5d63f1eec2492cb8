"""Table 2: Deformable-DETR, K = 0: plain, 36 epochs, batch 32."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.deformable_detr import model
from ..common.optim import deformable_rates

model.backbone.bias = False  # mmdetection, which the code builds on, has none before a norm
dataloader.train.total_batch_size = 32
deformable_rates(optimizer)
train.max_epochs = 36.0
train.reference_batch_size = 32
lr_multiplier.milestones = [30]
