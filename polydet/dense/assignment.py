"""Which ground-truth box each anchor learns: pure functions of boxes.

All return one int64 per anchor: the index of the ground-truth box, or `BACKGROUND`, or `IGNORED`
(torchvision's `Matcher` uses the same numbers).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = -1
IGNORED = -2


def box_centers(boxes: Tensor) -> Tensor:
    """Centres `[..., 2]` (x, y) of xyxy boxes `[..., 4]`."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def inside_image(anchors: Tensor, image_size: tuple[int, int], multiple: int = 1) -> Tensor:
    """Anchors whose centre lies in the image, not in the padding of the batch; on its right or lower edge is outside.

    Args:
        anchors: `[N, 4]` xyxy pixels.
        image_size: height, width before padding.
        multiple: the image counts with its sides rounded up to a multiple of this: 32 where a pipeline of mmdetection
            pads every image to a multiple of 32.

    Returns:
        `[N]` bool.
    """
    height, width = (-(-side // multiple) * multiple for side in image_size)
    # centres are multiples of half a pixel, but for the rounding of corners that are none
    return (box_centers(anchors) < anchors.new_tensor([width - 0.01, height - 0.01])).all(dim=-1)


def atss_candidates(anchors: Sequence[Tensor], gt_boxes: Tensor, topk: int) -> Tensor:
    """The `topk` anchors of each level that are closest to each box by centre distance.

    Args:
        anchors: per level `[N_l, 4]` xyxy.
        gt_boxes: `[G, 4]` xyxy.

    Returns:
        `[sum_l min(topk, N_l), G]` int64 indices into the concatenated anchors.
    """
    centers = box_centers(gt_boxes)
    candidates, start = [], 0
    for level in anchors:
        distance = torch.cdist(box_centers(level), centers, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.topk(min(topk, len(level)), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += len(level)
    return torch.cat(candidates)


@torch.no_grad()
def atss_assign(anchors: Sequence[Tensor], gt_boxes: Tensor, topk: int = 9) -> Tensor:
    """Adaptive training sample selection (arXiv:1912.02424, algorithm 1).

    Of the `topk` nearest anchors a level, those are positive whose IoU reaches mean + standard deviation of
    the candidates' IoUs and whose centre lies in the box; an anchor wanted by several boxes goes to the one
    it overlaps most.

    Args:
        anchors: per level `[N_l, 4]` xyxy pixels; levels may be empty.
        gt_boxes: `[G, 4]` xyxy pixels.

    Returns:
        `[sum_l N_l]` int64, index of the box or `BACKGROUND`.
    """
    flat = torch.cat(list(anchors)).float()
    gt_boxes = gt_boxes.float()
    matches = flat.new_full((len(flat),), BACKGROUND, dtype=torch.int64)
    if not len(flat) or not len(gt_boxes):
        return matches
    candidates = atss_candidates([level.float() for level in anchors], gt_boxes, topk)  # [K, G]
    iou = box_iou(flat, gt_boxes)  # [N, G]
    candidate_iou = iou.gather(0, candidates)
    spread = candidate_iou.std(dim=0) if len(candidates) > 1 else torch.zeros_like(candidate_iou[0])
    centers = box_centers(flat)[candidates]  # [K, G, 2]
    margin = torch.cat([centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers], dim=-1).amin(dim=-1)
    positive = (candidate_iou >= candidate_iou.mean(dim=0) + spread) & (margin > 0.01)

    best = torch.full_like(iou, -1.0)
    best.scatter_(0, candidates, torch.where(positive, candidate_iou, -1.0))
    value, index = best.max(dim=1)
    return torch.where(value >= 0, index, matches)
