"""Deformable-DETR++ (Jia et al., 2022; the base of Co-DETR): mixed selection, look forward twice, no dropout."""

from .deformable_detr_two_stage import model

model.queries.content = "learned"
model.decoder.look_forward_twice = True
for part in (model.encoder, model.decoder):
    part.layer.ffn_dim = 2048
    part.layer.dropout = 0.0
