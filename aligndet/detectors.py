"""Pieces of Detectron2's detectors that its configs cannot spell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import fcos
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from torch import nn

from polydet.data import label_space_of


class FCOS(fcos.FCOS):
    """Detectron2's FCOS, which in 0.6 fails on an image without objects; here such an image is background."""

    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> Any:
        """As Detectron2's. An image without objects gets one without area, which no point lies in."""
        return super().label_anchors(anchors, [x if len(x) else _with_a_point(x) for x in gt_instances])


def _with_a_point(instances: Instances) -> Instances:
    device = instances.gt_boxes.device
    point = Instances(instances.image_size)
    point.gt_boxes = Boxes(torch.full((1, 4), -1.0, device=device))
    point.gt_classes = torch.zeros(1, dtype=torch.int64, device=device)
    return point


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or fewer so that a small number of channels still has two a group.

    Detectron2 0.6 tries the norm of its dense heads on one channel, which ``"GN"`` does not survive.
    """
    return nn.GroupNorm(math.gcd(32, max(channels // 2, 1)), channels)


def fcos_head(
    channels: int,
    num_classes: int,
    num_levels: int = 5,
    num_convs: int = 4,
    prior_prob: float = 0.01,
    size_prior: float = 0.0,
) -> FCOSHead:
    """FCOS's head with group norm in its towers.

    Args:
        prior_prob: of an object, at the start.
        size_prior: distance from a point to the sides of its box at the start, in strides. Detectron2's 0 lies on the
            edge of the ReLU behind the distances, where large steps from scratch can leave no gradient.
    """
    shapes: Sequence[ShapeSpec] = [ShapeSpec(channels=channels)] * num_levels
    head = FCOSHead(
        input_shape=shapes,
        num_classes=num_classes,
        conv_dims=[channels] * num_convs,
        norm=group_norm,
        prior_prob=prior_prob,
    )
    nn.init.constant_(head.bbox_pred.bias, size_prior)
    return head


def retinanet_head(
    channels: int, num_classes: int, num_levels: int = 5, num_convs: int = 4, num_anchors: int = 9
) -> RetinaNetHead:
    """Detectron2's RetinaNet head for any number of levels, which its configs have to count."""
    shapes: Sequence[ShapeSpec] = [ShapeSpec(channels=channels)] * num_levels
    return RetinaNetHead(
        input_shape=shapes, num_classes=num_classes, num_anchors=num_anchors, conv_dims=[channels] * num_convs
    )


def num_classes_of(datasets: Sequence[str], merge: Literal["none", "name"] = "none") -> int:
    """Number of labels of training datasets, for closed-set heads; ``merge`` as in the train loader."""
    return len(label_space_of(list(datasets), merge))
