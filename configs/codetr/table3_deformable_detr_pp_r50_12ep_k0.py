"""Table 3: Deformable-DETR++ R50, K = 0: 12 epochs, batch 16."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.deformable_detr_pp import model
from ..common.optim import deformable_rates

model.backbone.bias = False  # mmdetection, which the code builds on, has none before a norm
deformable_rates(optimizer)
train.reference_batch_size = 16
