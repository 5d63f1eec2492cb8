"""DINO with 4 scales (Zhang et al., 2022; the base of METR): mixed selection, contrastive denoising, 900 queries."""

from detectron2.config import LazyCall as L

from polydet.detr import AnchorPosition, Denoising, TwoStageQueries

from .deformable_detr import model

model.position.temperature = 20.0
model.position.offset = 0.0
model.queries = L(TwoStageQueries)(
    num_classes="${..num_classes}",
    num_queries=900,
    dim="${..dim}",
    content="learned",
    position="anchor",
    rank="max",
    supervise="selected",
    content_init="xavier",
    select_padding="training",
)
model.denoising = L(Denoising)(
    num_classes="${..num_classes}",
    dim="${..dim}",
    num_queries=100,
    label_noise=0.25,
    box_noise=0.4,
    contrastive=True,
    normalizer="objects",
)
model.decoder.query_position = L(AnchorPosition)(dim="${...dim}", scale_by_content=False, relative_to="map")
model.decoder.refine = True
model.decoder.look_forward_twice = True
model.decoder.norm = True
model.decoder.eps = 1e-3
for part in (model.encoder, model.decoder):
    part.layer.ffn_dim = 2048
    part.layer.dropout = 0.0
model.criterion.class_weight = 1.0
model.postprocess.num = 300
model.box_prior = 0.0
