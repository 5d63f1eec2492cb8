"""FCOS as an auxiliary head: points in the centre of a box, by scale (arXiv:1904.01355)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polydet.dense import BACKGROUND, DenseHead, centerness
from polydet.dense.assignment import box_centers

MAX_LOG = math.log(1000.0)


@torch.no_grad()
def fcos_assign(points: Sequence[Tensor], strides: Sequence[int], gt_boxes: Tensor, radius: float = 1.5) -> Tensor:
    """A point learns the smallest box whose centre area holds it and whose size suits its level.

    Centre area: inside the box and within `radius` strides of its centre. Size: the largest of the four
    distances from point to sides lies in 4 to 8 strides, from 0 on the finest and to infinity on the coarsest.

    Args:
        points: per level `[N_l, 2]` pixels.
        gt_boxes: `[G, 4]` xyxy pixels.

    Returns:
        `[sum_l N_l]` int64, index of the box or `BACKGROUND`.
    """
    flat = torch.cat(list(points))
    if not len(gt_boxes):
        return torch.full((len(flat),), BACKGROUND, device=flat.device)
    scale = torch.cat([torch.full_like(p[:, 0], float(s)) for p, s in zip(points, strides)])[:, None]
    low, high = 4 * scale, 8 * scale
    low[: len(points[0])] = 0
    high[len(flat) - len(points[-1]) :] = float("inf")

    distance = torch.cat([flat[:, None] - gt_boxes[:, :2], gt_boxes[:, 2:] - flat[:, None]], dim=-1)  # [N, G, 4]
    offset = (flat[:, None] - box_centers(gt_boxes)).abs().amax(dim=-1)
    reach = distance.amax(dim=-1)
    fits = (distance.amin(dim=-1) > 0) & (offset < radius * scale) & (reach >= low) & (reach <= high)
    area = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=-1)
    smallest, index = torch.where(fits, area, float("inf")).min(dim=1)
    return torch.where(smallest < float("inf"), index, BACKGROUND)


class FCOSHead(DenseHead):
    """`DenseHead` on points; its anchors are the query boxes of table 1, side 8 strides around the point.

    Raw box outputs are logarithms of the four distances in strides.
    """

    def __init__(
        self, in_channels: int, num_classes: int, strides: Sequence[int], *, radius: float = 1.5, **kwargs: Any
    ) -> None:
        super().__init__(in_channels, num_classes, strides, **{"box_weight": 1.0, "anchor_offset": 0.5, **kwargs})
        self.radius = radius

    def match(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """See `fcos_assign`."""
        return fcos_assign([box_centers(level) for level in anchors], self.strides, gt_boxes, self.radius)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Centre minus and plus exp(raw) strides."""
        distance = deltas.float().clamp(max=MAX_LOG).exp() * self.stride_of(anchors)[:, None]
        centers = box_centers(anchors)
        return torch.cat([centers - distance[:, :2], centers + distance[:, 2:]], dim=-1)

    def quality_target(self, anchors: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor | None:
        """Centerness."""
        return centerness(box_centers(anchors), gt_boxes)
