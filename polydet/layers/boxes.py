"""Box arithmetic that torchvision lacks: any leading dimensions, and no absolute epsilon for normalised boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of `x`, clamped so that 0 and 1 stay finite: `x` and ``1 - x`` are at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``[..., 4]`` centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``[..., 4]`` corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al., 2019) of xyxy boxes, broadcast over the leading dimensions.

    For all pairs of ``[..., Q, 4]`` and ``[..., N, 4]`` pass ``a[..., :, None, :]`` and ``b[..., None, :, :]``.
    A fixed epsilon of 1e-7, as in torchvision and fvcore, is 0.1 % of the area of a 10-pixel box in normalised
    coordinates; here only an empty union is guarded. A box whose corners are swapped counts as empty.

    Returns:
        two tensors of the broadcast leading shape.
    """
    tiny = torch.finfo(a.dtype).tiny
    size_a = (a[..., 2:] - a[..., :2]).clamp(min=0)
    size_b = (b[..., 2:] - b[..., :2]).clamp(min=0)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = overlap[..., 0] * overlap[..., 1]
    union = (size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - inter).clamp(min=tiny)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull_area = (hull[..., 0] * hull[..., 1]).clamp(min=tiny)
    iou = inter / union
    return iou, iou - (hull_area - union) / hull_area
