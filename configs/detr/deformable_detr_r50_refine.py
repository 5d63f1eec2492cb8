"""Deformable-DETR R50 with iterative box refinement: 46.2 AP on COCO val."""

from ..common.models.deformable_detr_refine import model
from .deformable_detr_r50 import dataloader, lr_multiplier, optimizer, train
