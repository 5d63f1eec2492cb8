"""Two-stage Deformable-DETR R50: 46.9 AP on COCO val."""

from ..common.models.deformable_detr_two_stage import model
from .deformable_detr_r50 import dataloader, lr_multiplier, optimizer, train
