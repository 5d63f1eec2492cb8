"""Pieces of Detectron2's detectors that its configs cannot spell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import nn

from polydet.data import label_space_of


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


def num_classes_of(datasets: Sequence[str]) -> int:
    """Number of labels of training datasets, for closed-set heads."""
    return len(label_space_of(list(datasets)))
