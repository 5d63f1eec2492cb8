"""Classification and regression losses that fvcore and torchvision lack. All are elementwise, without reduction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al., "Generalized Focal Loss", eq. 2): BCE to a soft target, weighted by the miss.

    Args:
        logits: any shape.
        quality: same shape, in [0, 1]: IoU of the predicted box at the true class, 0 elsewhere. No gradient.

    Returns:
        ``|quality - sigmoid(logits)|^beta * BCE``, same shape.
    """
    bce = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).abs().pow(beta) * bce


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Distribution focal loss (Li et al., "Generalized Focal Loss", eq. 6).

    Args:
        logits: ``[..., R + 1]`` over the integer distances 0..R.
        target: ``[...]`` real distance; clamped just below R.

    Returns:
        ``[...]`` cross entropy to the two integers around the target, weighted by nearness.
    """
    last = logits.shape[-1] - 1
    target = target.clamp(0, last - 0.01)
    low = target.floor()
    log_p = F.log_softmax(logits, dim=-1)
    left = log_p.gather(-1, low.long()[..., None])[..., 0]
    right = log_p.gather(-1, low.long()[..., None] + 1)[..., 0]
    return -(left * (low + 1 - target) + right * (target - low))


def asymmetric_loss(
    logits: Tensor, target: Tensor, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> Tensor:
    """Asymmetric loss for multi-label classification (Ridnik et al., 2021, eq. 7).

    Args:
        logits: any shape.
        target: same shape, 0 or 1.
        clip: probability margin by which negatives are shifted, so that easy ones cost nothing.

    Returns:
        same shape, non-negative. The focusing weights carry no gradient, as in the authors' code.
    """
    p = logits.sigmoid()
    q = (1 - p + clip).clamp(max=1) if clip > 0 else 1 - p
    loss = -(target * F.logsigmoid(logits) + (1 - target) * q.clamp(min=1e-8).log())
    with torch.no_grad():
        weight = torch.where(target > 0, (1 - p).pow(gamma_pos), (1 - q).pow(gamma_neg))
    return weight * loss
