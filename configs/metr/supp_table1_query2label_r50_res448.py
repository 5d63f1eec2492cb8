"""Supplementary table 1: Query2Label-R50, 448 x 448, 80 epochs; evaluate with tools/evaluate_classification.py."""

from detectron2.config import LazyCall as L

from polydet.data.augmentations import fixed_resize

from ..common.data import dataloader
from ..common.models.query2label import model
from ..common.optim import adamw as optimizer
from ..common.schedules import cosine as lr_multiplier
from ..common.train import train

dataloader.train.total_batch_size = train.reference_batch_size = 128
dataloader.train.mapper.augmentations = L(fixed_resize)(height=448, width=448, flip=True)
dataloader.test.mapper.augmentations = L(fixed_resize)(height=448, width=448)
dataloader.test_datasets = []
optimizer.update(lr=1e-4, weight_decay=1e-2)
lr_multiplier.warmup_iters = 14784  # a fifth of the run, as its one-cycle schedule
train.max_epochs = 80.0
train.ema.update(enabled=True, decay=0.9997)
