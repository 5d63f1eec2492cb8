"""DN-DAB-Deformable-DETR R50 as its authors train it: 50 epochs, batch 16."""

from ..common.models.dn_dab_deformable_detr import model
from .conditional_detr_r50 import dataloader, lr_multiplier, optimizer, train
