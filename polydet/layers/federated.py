"""Federated classification losses: only some classes of a step count (CenterNet2 and Detic on LVIS)."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_federated_labels(present: Tensor, weights: Tensor, count: int) -> Tensor:
    """Classes of one step: those that occur, filled up with classes drawn by weight (arXiv:2103.07461, sec. 5).

    Args:
        present: int64 `[R]` labels of the step; a label of `len(weights)` is background, and counts as one of `count`.
        weights: `[n]` sampling weights, number of training images ** 0.5.
        count: how many to reach (50); more are kept where more occur.

    Returns:
        int64, sorted, without background.
    """
    unique = present.unique()
    chosen = unique[unique < len(weights)]
    weights = weights.clone()
    weights[chosen] = 0
    missing = min(count - len(unique), int((weights > 0).sum()))
    if missing > 0:
        chosen = torch.cat([chosen, torch.multinomial(weights, missing)])
    return chosen.sort().values
