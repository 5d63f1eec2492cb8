"""Hard and soft label assignment (ScaleDet eqs. 6 and 7) without an n-wide target matrix.

Shapes: R regions, n labels, D text dimensions.  ``visual`` and ``text`` are unit rows, so that their product is
the cosine of eq. 5.  Labels are in ``[0, n]`` and n is background.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polydet.text import label_similarity

_CPU_CHUNK_ELEMENTS = 1 << 19  # one chunk of logits stays in the cache
_GPU_CHUNK_ELEMENTS = 1 << 26


class _HardLabelLoss(torch.autograd.Function):
    """Sum of BCE over regions and labels.  Logits exist only one chunk of rows at a time: the gradient towards
    ``visual`` is formed in the same pass, so nothing of size R x n is ever saved."""

    @staticmethod
    def forward(
        ctx: Any, visual: Tensor, bias: Tensor | None, text: Tensor, labels: Tensor, ignored: Tensor, scale: float
    ) -> Tensor:
        with_grad = any(ctx.needs_input_grad)
        rows, n = visual.shape[0], text.shape[0]
        grad_visual = torch.zeros_like(visual) if with_grad else None
        grad_bias = visual.new_zeros((), dtype=torch.float64)
        total = visual.new_zeros((), dtype=torch.float64)
        budget = _CPU_CHUNK_ELEMENTS if visual.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
        step = max(budget // max(n, 1), 1)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            logits = (visual[part] * scale) @ text.T
            if bias is not None:
                logits.add_(bias)
            if ignored.shape[1]:
                row, extra = (ignored[part] >= 0).nonzero(as_tuple=True)
                logits[row, ignored[part][row, extra]] = -torch.inf
            fg = (labels[part] < n).nonzero().squeeze(1)
            column = labels[part][fg]
            total += torch.nn.functional.softplus(logits).sum() - logits[fg, column].sum()
            if grad_visual is not None:
                grad = logits.sigmoid_()
                grad[fg, column] -= 1.0
                grad_bias += grad.sum()
                torch.mm(grad, text, out=grad_visual[part])
        if grad_visual is not None:
            ctx.save_for_backward(grad_visual.mul_(scale), grad_bias.to(visual.dtype))
        return total.to(visual.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_visual, grad_bias = ctx.saved_tensors
        return (
            grad_visual * upstream if ctx.needs_input_grad[0] else None,
            grad_bias * upstream if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
            None,
        )


def hard_label_loss(
    visual: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: float = 50.0,
    bias: Tensor | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of ``sigmoid(scale * cos + bias)`` against the one-hot label (eq. 6), summed.

    Args:
        visual: ``[R, D]`` unit rows; gradients flow here.
        text: ``[n, D]`` unit rows, constant.
        labels: int64 ``[R]`` in ``[0, n]``; n (background) has no positive.
        scale: 1 / tau.
        bias: optional learnable scalar added to every logit.
        ignored: int64 ``[R, K]`` labels that do not count for a row, padded with -1; never the row's own label.

    Returns:
        0-d sum over regions and labels (zero with graph for R = 0).
    """
    if ignored is None:
        ignored = labels.new_empty((len(labels), 0))
    return _HardLabelLoss.apply(visual, bias, text.detach(), labels, ignored, scale)


class SoftLabelTargets:
    """What eq. 7 needs of the similarity matrix S (eqs. 3 and 4), in size O(nD) instead of n^2.

    With c = T v and s the row of S that belongs to the label, ``|c - s|^2 = v (T'T) v - 2 v (S T) + |s|^2``, so
    the squared error over all n labels needs no n-wide row at training time.

    Args:
        text: ``[n, D]`` unit rows.  Sums are taken in float64 and kept in the dtype of ``text``.
    """

    def __init__(self, text: Tensor) -> None:
        exact = text.double()
        similarity = label_similarity(exact)
        self.n = text.shape[0]
        self.gram = (exact.T @ exact).to(text.dtype)
        self.cross = (similarity @ exact).to(text.dtype)
        self.square = similarity.square().sum(1).to(text.dtype)


def soft_label_loss(
    visual: Tensor, labels: Tensor, gram: Tensor, cross: Tensor, square: Tensor, background: str = "ignore"
) -> Tensor:
    """Mean squared error over the n labels between the raw cosines and the label's similarities (eq. 7), summed.

    Args:
        visual: ``[R, D]`` unit rows; gradients flow here.
        labels: int64 ``[R]`` in ``[0, n]``, n is background.
        gram, cross, square: ``[D, D]``, ``[n, D]``, ``[n]`` of ``SoftLabelTargets``.
        background: ``"ignore"`` leaves background rows out, ``"zero"`` gives them the target s = 0.

    Returns:
        0-d sum over regions of the mean over labels (zero with graph when no row counts).
    """
    n = len(square)
    fg = labels < n
    rows = visual if background == "zero" else visual[fg]
    # v G v has the gradient 2 G v: one product with G serves the value and, below, the gradient
    half = rows.detach() @ gram
    total = 2.0 * (half * rows).sum() - (half * rows.detach()).sum()
    positive, label = visual[fg], labels[fg]
    return (total - 2.0 * (positive * cross[label]).sum() + square[label].sum()) / n


def duplicate_labels(text: Tensor, threshold: float = 0.9999) -> Tensor:
    """Labels that a text encoder cannot tell apart: COCO's and LVIS's "person" have the same embedding.

    Args:
        text: ``[n, D]`` unit rows.
        threshold: cosine above which two labels count as one.

    Returns:
        int64 ``[n, K]``: for each label the others with the same embedding, padded with -1.
    """
    same = text @ text.T > threshold
    same.fill_diagonal_(False)
    counts = same.sum(1)
    row, column = same.nonzero(as_tuple=True)
    first = counts.cumsum(0) - counts
    others = torch.full((len(text), int(counts.max()) if len(text) else 0), -1, dtype=torch.long, device=text.device)
    others[row, torch.arange(len(row), device=text.device) - first[row]] = column
    return others
