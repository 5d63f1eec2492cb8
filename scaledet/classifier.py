"""Text classifier and box regressor of one cascade stage."""

import fvcore.nn.weight_init as weight_init
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from polydet.text import TextClassifier, TextEncoder


def embedding_dim(encoder: TextEncoder) -> int:
    """D of a text encoder, for configs: the classifiers follow when the encoder is exchanged."""
    return encoder.dim


class TextFastRCNNOutput(FastRCNNOutputLayers):
    """Detectron2's box predictor with a text classifier and a class-agnostic two-layer box head.

    ``forward(features [R, in_channels])`` gives ``(visual [R, D], deltas [R, 4])``: the visual rows are unit vectors.
    The labels and their loss belong to the RoI heads.

    Args:
        in_channels: width of the region features.
        text_dim: D of the text encoder.
        box_weights: weights of the box deltas (dx, dy, dw, dh).
        use_bias: 0 for none; any other value is the start of a learnable scalar added to every logit (Detic: -4.6).
        tau: temperature of the cosines (eq. 6).
        test_score_thresh, test_nms_thresh, test_topk_per_image: as Detectron2's.
    """

    def __init__(
        self,
        in_channels: int,
        text_dim: int,
        box_weights: tuple[float, float, float, float],
        use_bias: float = 0.0,
        tau: float = 0.02,
        test_score_thresh: float = 0.02,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 300,
    ) -> None:
        super().__init__(
            ShapeSpec(channels=in_channels),
            box2box_transform=Box2BoxTransform(weights=tuple(box_weights)),
            num_classes=1,  # the RoI heads set it to the number of joint labels
            cls_agnostic_bbox_reg=True,
            smooth_l1_beta=0.0,
            test_score_thresh=test_score_thresh,
            test_nms_thresh=test_nms_thresh,
            test_topk_per_image=test_topk_per_image,
        )
        self.cls_score = TextClassifier(in_channels, text_dim, 1.0 / tau, bias=use_bias or None)
        hidden, last = nn.Linear(in_channels, in_channels), nn.Linear(in_channels, 4)
        weight_init.c2_xavier_fill(hidden)
        nn.init.normal_(last.weight, std=0.001)
        nn.init.constant_(last.bias, 0.0)
        self.bbox_pred = nn.Sequential(hidden, nn.ReLU(inplace=True), last)
