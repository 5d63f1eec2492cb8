"""Two-stage Deformable-DETR: the encoder's best tokens become queries, in place and content."""

from detectron2.config import LazyCall as L

from polydet.detr import TwoStageQueries

from .deformable_detr_refine import model

model.queries = L(TwoStageQueries)(
    num_classes="${..num_classes}",
    num_queries=300,
    dim="${..dim}",
    content="proposal",
    position="proposal",
    rank="first",
    supervise="all",
    content_init="normal",
    select_padding="training",
)
model.box_prior = 0.0
