"""DAB-DETR (Liu et al., 2022): anchors as queries, refined layer by layer, attention modulated by their size."""

from detectron2.config import LazyCall as L

from polydet.detr import AnchorQueries, ModulatedAnchorPosition

from .conditional_detr import model

model.position.temperature = 20.0
model.encoder.scale_position = True
model.queries = L(AnchorQueries)(num_queries=300, dim="${..dim}", content="zeros")
model.decoder.query_position = L(ModulatedAnchorPosition)(dim="${...dim}")
model.decoder.refine = True
model.decoder.eps = 1e-3
model.decoder.look_forward_twice = True  # the authors' code collects undetached boxes
for _part in (model.encoder, model.decoder):
    _part.layer.dropout = 0.0
    _part.layer.activation = "prelu"
model.criterion.class_weight = 1.0
model.postprocess.num = 300
