"""Two-stage Deformable-DETR on your own cards: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from ..common.models.deformable_detr_two_stage import model
from .common.detr import dataloader, fit, lr_multiplier, optimizer, train

recipe = fit(model)
