"""DINO on your own cards: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from ..common.models.dino import model
from .common.detr import dataloader, fit, lr_multiplier, optimizer, train

recipe = fit(model)
model.postprocess.num = 100
