"""Table 3: Deformable-DETR++ R50, K = 0: 12 epochs, batch 16."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.deformable_detr_pp import model

model.backbone.bias = False  # mmdetection, which the code builds on, has none before a norm
optimizer.lr = 2e-4
optimizer.params.lr_factors["sampling_offsets"] = 0.1
train.reference_batch_size = 16
