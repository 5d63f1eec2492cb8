"""RetinaNet as an auxiliary head: nine anchors, IoU thresholds, focal and GIoU losses (arXiv:1708.02002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor
from torchvision.ops import box_iou

from polydet.dense import BACKGROUND, IGNORED, DenseHead


@torch.no_grad()
def iou_assign(
    anchors: Tensor,
    gt_boxes: Tensor,
    thresholds: tuple[float, float] = (0.4, 0.5),
    allow_low_quality: bool = True,
) -> Tensor:
    """Assign anchors by their best IoU: background below the first threshold, ignored up to the second.

    Args:
        anchors: `[N, 4]` xyxy; gt_boxes: `[G, 4]` xyxy.
        allow_low_quality: the best anchors of every box are positive whatever their IoU.

    Returns:
        `[N]` int64 in the convention of `polydet.dense.assignment`.
    """
    low, high = thresholds
    limits, labels = ([high], [0, 1]) if low == high else ([low, high], [0, -1, 1])
    match, label = Matcher(limits, labels, allow_low_quality)(box_iou(gt_boxes.float(), anchors.float()))
    match = torch.where(label == 0, BACKGROUND, match)
    return torch.where(label == -1, IGNORED, match)


class RetinaNetHead(DenseHead):
    """`DenseHead` with nine anchors a location assigned by IoU 0.5 and 0.4 (table 1)."""

    def __init__(self, in_channels: int, num_classes: int, strides: Sequence[int], **kwargs: Any) -> None:
        defaults: dict[str, Any] = {
            "norm": "",
            "anchor_scale": 4.0,
            "octaves": 3,
            "aspect_ratios": (0.5, 1.0, 2.0),
            "delta_weights": (1.0, 1.0, 1.0, 1.0),
            "has_quality": False,
            "level_scale": False,
        }
        super().__init__(in_channels, num_classes, strides, **{**defaults, **kwargs})

    def match(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """See `iou_assign`."""
        return iou_assign(torch.cat(list(anchors)), gt_boxes)
