"""Anchors against the concepts of the global batch: the alignment loss of detection and grounding data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from polydet.dense import DenseTargets
from polydet.layers.reduce import mean_over_processes


def unique_concepts(concepts: Sequence[Sequence[str]]) -> list[str]:
    """Distinct strings in the order of their first appearance."""
    return list(dict.fromkeys(name for names in concepts for name in names))


def select_columns(
    own: Sequence[str], everyone: Sequence[str], limit: int | None, generator: torch.Generator | None = None
) -> list[str]:
    """Concepts this process compares its anchors with: its own, then random ones of the others up to `limit`.

    Args:
        own: distinct concepts of this process's images; all are kept, however many.
        everyone: distinct concepts of the global batch.
        limit: most columns; None for all.
        generator: of the random choice; torch's default when None.
    """
    chosen = list(own)
    known = set(own)
    others = [name for name in everyone if name not in known]
    room = len(others) if limit is None else max(limit - len(chosen), 0)
    if room < len(others):
        order = torch.randperm(len(others), generator=generator)[:room].sort().values
        others = [others[i] for i in order.tolist()]
    return chosen + others


def concept_targets(gt_concepts: Tensor, concepts: Sequence[str], column_of: Mapping[str, int], width: int) -> Tensor:
    """Which column each ground-truth box carries.

    Args:
        gt_concepts: `[G, M]` bool, box g carries concept m of the image.
        concepts: the image's M concepts; the same string twice is one concept.
        column_of: concept -> column.
        width: number of columns C.

    Returns:
        `[G, C]` float32 of zeros and ones.
    """
    target = torch.zeros(len(gt_concepts), width, device=gt_concepts.device)
    if len(concepts):
        columns = torch.tensor([column_of[name] for name in concepts], device=gt_concepts.device)
        target.index_add_(1, columns, gt_concepts.float())
    return target.clamp_(max=1)


def alignment_loss(
    regions: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    targets: DenseTargets,
    gt_targets: Sequence[Tensor],
    alpha: float = 0.25,
    gamma: float = 2.0,
    checkpointing: bool = False,
) -> Tensor:
    """Sigmoid focal loss of `scale * regions texts^T + bias` (DetCLIPv2, section 3.1), by `num_positives`.

    Args:
        regions: `[B, N, D]` embeddings of the anchors.
        texts: `[C, D]` unit rows.
        scale, bias: 0-d.
        targets: assignment of the anchors; only `matches`, `used` and `num_positives` are read.
        gt_targets: per image `[G, C]`, the columns each box carries (`concept_targets`).
        checkpointing: compute the `[N, C]` terms again in the backward pass instead of keeping them.

    Returns:
        0-d float32.
    """

    def of_image(rows: Tensor, columns: Tensor, match: Tensor, of_box: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits = (rows @ columns.T).float() * scale + bias
        wanted = torch.cat([of_box, of_box.new_zeros(1, of_box.shape[1])])[match]  # background, -1, takes the last row
        return sigmoid_focal_loss(logits, wanted, alpha, gamma, reduction="sum")

    scale = torch.as_tensor(scale, dtype=torch.float32, device=regions.device)
    bias = torch.as_tensor(bias, dtype=torch.float32, device=regions.device)
    total = regions.new_zeros((), dtype=torch.float32)
    for rows, matches, used, of_box in zip(regions, targets.matches, targets.used, gt_targets):
        arguments = (rows[used], texts, matches[used], of_box, scale, bias)
        if checkpointing and torch.is_grad_enabled():
            total = total + checkpoint(of_image, *arguments, use_reentrant=False)
        else:
            total = total + of_image(*arguments)
    return total / mean_over_processes(targets.num_positives)
