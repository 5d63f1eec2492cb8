"""DAB-Deformable-DETR (Liu et al., 2022): learned anchors with learned content, positions scaled by content."""

from detectron2.config import LazyCall as L

from polydet.detr import AnchorPosition, AnchorQueries

from .deformable_detr_refine import model

model.queries = L(AnchorQueries)(num_queries=300, dim="${..dim}", content="learned", indicator=False)
model.decoder.query_position = L(AnchorPosition)(dim="${...dim}", scale_by_content=True, relative_to="map")
model.decoder.eps = 1e-3
for part in (model.encoder, model.decoder):
    part.layer.ffn_dim = 2048
    part.layer.dropout = 0.0
model.criterion.class_weight = 1.0
model.postprocess.num = 300
