"""Layers and losses that several detectors share."""

from .boxes import cxcywh_to_xyxy, inverse_sigmoid, iou_and_giou, xyxy_to_cxcywh
from .losses import asymmetric_loss, distribution_focal_loss, quality_focal_loss
from .mlp import MLP, FeedForward, activation_module, prior_bias, xavier_reset
from .position import SinePositionEncoding, encode_anchors, sine_encoding
from .reduce import mean_over_processes
from .soft_nms import linear_soft_nms

__all__ = [
    "MLP",
    "FeedForward",
    "SinePositionEncoding",
    "activation_module",
    "asymmetric_loss",
    "cxcywh_to_xyxy",
    "distribution_focal_loss",
    "encode_anchors",
    "inverse_sigmoid",
    "iou_and_giou",
    "linear_soft_nms",
    "mean_over_processes",
    "prior_bias",
    "quality_focal_loss",
    "sine_encoding",
    "xavier_reset",
    "xyxy_to_cxcywh",
]
