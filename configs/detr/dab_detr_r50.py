"""DAB-DETR R50 as its authors train it: 50 epochs, batch 16; 42.2 AP on COCO val."""

from ..common.models.dab_detr import model
from .conditional_detr_r50 import dataloader, lr_multiplier, optimizer, train
