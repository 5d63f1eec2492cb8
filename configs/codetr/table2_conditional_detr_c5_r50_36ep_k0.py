"""Table 2: Conditional-DETR-C5, K = 0: 36 epochs, batch 16."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.conditional_detr import model

optimizer.lr = 1e-4
train.max_epochs = 36.0
train.reference_batch_size = 16
lr_multiplier.milestones = [30]
