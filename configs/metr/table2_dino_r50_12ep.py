"""Table 2: DINO-4scale with 100 queries, 12 epochs, batch 8."""

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.dino import model

model.queries.num_queries = 100
model.postprocess.num = 100
dataloader.train.total_batch_size = 8
train.reference_batch_size = 8
