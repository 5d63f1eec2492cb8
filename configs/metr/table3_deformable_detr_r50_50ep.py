"""Table 3: Deformable-DETR, 300 queries, 50 epochs, batch 16; feed-forward width 2048, which METR weights fit.

The rates are the paper's; `deformable_rates` of `configs/common/optim.py` has those of Deformable-DETR's repository.
"""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.deformable_detr import model

model.encoder.layer.ffn_dim = model.decoder.layer.ffn_dim = 2048
train.max_epochs = 50.0
train.reference_batch_size = 16
lr_multiplier.milestones = [40]
