"""DINO with 5 scales (strides 4 to 64) as Co-DETR builds on it: heads of their own for every layer, box noise 1."""

from .dino import model

model.backbone.in_features = ["res2", "res3", "res4", "res5"]
model.backbone.num_outs = 5
model.backbone.bias = False  # mmdetection has none before a norm
model.queries.content_init = "normal"
model.denoising.update(box_noise=1.0, normalizer="pairs")
model.share_heads = False
