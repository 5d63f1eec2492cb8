"""Conditional DETR (Meng et al., 2021): DETR with conditional spatial queries from a 2-d reference; focal loss."""

from detectron2.config import LazyCall as L

from polydet.detr import ConditionalDecoderLayer, ConditionalPosition, FocalLoss, TopK

from .detr import model

model.queries.num_queries = 300
model.queries.reference = "mlp"
model.decoder.layer._target_ = ConditionalDecoderLayer
model.decoder.query_position = L(ConditionalPosition)(dim="${...dim}")
model.criterion.matcher.class_cost = "focal"
model.criterion.matcher.class_weight = 2.0
model.criterion.class_loss = L(FocalLoss)(alpha=0.25, gamma=2.0)
model.criterion.class_weight = 2.0
model.postprocess = L(TopK)(num=100)
model.background_class = False
model.box_prior = 0.0
