"""ATSS: one square anchor a location, adaptive assignment, centerness (arXiv:1912.02424)."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from .assignment import atss_assign, box_centers
from .head import DenseHead


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Centerness of points inside boxes (FCOS, arXiv:1904.01355, eq. 3).

    Args:
        points: `[N, 2]`; boxes: `[N, 4]` xyxy.

    Returns:
        `[N]` in 0..1, 0 for a point outside its box.
    """
    near, far = points - boxes[:, :2], boxes[:, 2:] - points
    ratio = torch.minimum(near, far).clamp(min=0) / torch.maximum(near, far).clamp(min=1e-6)
    return ratio.prod(dim=-1).sqrt()


class ATSSHead(DenseHead):
    """`DenseHead` with ATSS assignment; GIoU weighted by centerness.

    Replace `class_predictor` (or pass the embedding's size as `num_classes`) and exchange
    `DensePredictions.logits` before `losses` and `inference` to classify by similarity.

    Args:
        topk: candidates a level and box.
        others: see `DenseHead`.
    """

    def __init__(
        self, in_channels: int, num_classes: int | Sized, strides: Sequence[int], *, topk: int = 9, **kw: Any
    ) -> None:
        super().__init__(in_channels, num_classes, strides, **kw)
        self.topk = topk

    def match(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """See `atss_assign`."""
        return atss_assign(anchors, gt_boxes, self.topk)

    def quality_target(self, anchors: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor | None:
        """Centerness of the anchors' centres."""
        return centerness(box_centers(anchors), gt_boxes)
