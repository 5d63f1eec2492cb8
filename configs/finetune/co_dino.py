"""Co-DINO (Faster R-CNN and ATSS beside it) on your own cards: `dataloader.train.datasets=[...]
dataloader.test_datasets=[...]`."""

from ..common.models.co_dino import model
from .common.detr import dataloader, fit, lr_multiplier, optimizer, train

recipe = fit(model)
model.encoder.checkpoint_layers = 0
