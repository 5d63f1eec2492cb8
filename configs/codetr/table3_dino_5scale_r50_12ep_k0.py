"""Table 3: DINO-Deformable-DETR R50, 5 scales, K = 0: 12 epochs, batch 16."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.dino_5scale import model

optimizer.lr = 2e-4
train.reference_batch_size = 16
