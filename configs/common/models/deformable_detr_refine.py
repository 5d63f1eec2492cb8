"""Deformable-DETR with iterative box refinement: heads of their own for every layer."""

from .deformable_detr import model

model.decoder.refine = True
model.share_heads = False
