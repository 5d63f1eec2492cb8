"""Soft-NMS (Bodla et al., 2017), linear decay, class by class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou


@torch.no_grad()
def linear_soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float = 0.8, min_score: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Lower the score of a box by (1 - IoU) for every better box of its class that overlaps it too much.

    Each class by itself: the overlaps of all classes' boxes together may not fit into memory.

    Args:
        boxes: ``[n, 4]`` xyxy. scores: ``[n]``. classes: ``[n]``.
        iou_threshold: overlap above which a score decays.
        min_score: boxes that fall under it are dropped.

    Returns:
        indices kept, best first, and their decayed scores; on the inputs' device.
    """
    indices, decayed = [classes.new_zeros(0, dtype=torch.int64)], [scores[:0]]
    for label in classes.unique():
        rows = (classes == label).nonzero().squeeze(1)
        kept, lowered = _one_class(boxes[rows], scores[rows], iou_threshold, min_score)
        indices.append(rows[kept])
        decayed.append(lowered)
    best, order = torch.cat(decayed).sort(descending=True, stable=True)
    return torch.cat(indices)[order], best


def _one_class(boxes: Tensor, scores: Tensor, iou_threshold: float, min_score: float) -> tuple[Tensor, Tensor]:
    """The greedy walk is sequential, so it runs in numpy on the host over one IoU matrix."""
    iou = box_iou(boxes.float(), boxes.float())
    decay = torch.where(iou > iou_threshold, 1 - iou, torch.ones_like(iou)).cpu().numpy()
    current = scores.float().cpu().numpy().copy()
    order, kept = [], []
    while current.size:
        best = int(np.argmax(current))
        score = float(current[best])
        if score < min_score:
            break
        order.append(best)
        kept.append(score)
        current *= decay[best]
        current[best] = -1.0
    keep = torch.as_tensor(order, dtype=torch.int64, device=scores.device)
    return keep, torch.as_tensor(kept, dtype=scores.dtype, device=scores.device)
