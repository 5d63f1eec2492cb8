"""Group bipartite matching (METR, sec. 3.3): objects meet only queries that were assigned to their category."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils.events import get_event_storage
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from polydet.detr import Assignment, HungarianMatcher, Predictions, Targets


@dataclass(eq=False)
class GroupAssignment(Assignment):
    """An assignment, and how many objects had no query left: those of categories with more objects than queries,
    and those whose category has no query at all."""

    surplus: int = 0


class GroupMatcher(HungarianMatcher):
    """The cheapest one-to-one assignment within each category (eqs. 6 and 7).

    Each query has one logit, the matchability of its own category, so the cost of eq. 7 is that of
    `HungarianMatcher` with one class. It is computed for pairs of equal category only, for all layers and images at
    once, and copied to the host once. A group of one object takes its cheapest query; scipy solves the others.
    """

    @torch.no_grad()
    def forward(self, predictions: Predictions, targets: Sequence[Targets]) -> GroupAssignment:
        """Assign the objects of each image at each layer, and log how many had no query, as ``metr/surplus_objects``.

        Args:
            predictions: logits ``[L, B, Q, 1]``, boxes ``[L, B, Q, 4]``, classes ``[B, Q]``.
            targets: objects of each image, labels in the numbering of the classes.

        Raises:
            ValueError: queries without a category, or a cost that is NaN or infinite; names the image.
        """
        classes = predictions.classes
        if classes is None:
            raise ValueError("a GroupMatcher needs queries with a category each, this query source gives none")
        device = predictions.boxes.device
        count = sum(len(t) for t in targets)
        if count == 0:
            none = torch.zeros(0, dtype=torch.int64, device=device)
            return GroupAssignment(none, none, none, none)
        with torch.autocast(device.type, enabled=False):
            labels = nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True, padding_value=-1)
            boxes = nn.utils.rnn.pad_sequence([t.boxes for t in targets], batch_first=True, padding_value=0.5)
            image, query, target = (classes[:, :, None] == labels[:, None, :]).nonzero(as_tuple=True)
            cost = self.pair_cost(predictions, image, query, boxes[image, target]).cpu().numpy()
        pairs = torch.stack((image, labels[image, target], query, target)).cpu().numpy()
        self._check(cost, pairs[0], targets)
        rows, matched = solve_groups(cost, pairs)
        layer, image, query, target = torch.from_numpy(rows).to(device)
        _log_surplus(count - matched)
        return GroupAssignment(layer, image, query, target, surplus=count - matched)

    def pair_cost(self, predictions: Predictions, image: Tensor, query: Tensor, boxes: Tensor) -> Tensor:
        """Cost ``[L, P]`` of P pairs: query `query` of image `image` for an object with box `boxes` ``[P, 4]``."""
        picked = Predictions(
            predictions.logits[:, image, query][:, :, None], predictions.boxes[:, image, query][:, :, None]
        )
        return self.cost(picked, torch.zeros_like(image)[:, None], boxes[:, None]).flatten(1)

    def _check(self, cost: np.ndarray, image: np.ndarray, targets: Sequence[Targets]) -> None:
        finite = np.isfinite(cost)
        if not finite.all():
            first = targets[int(image[np.argmin(finite.all(0))])]
            raise ValueError(
                f"the matching cost of image {first.name} is not finite: look at its pixels and boxes, then at the "
                "loss before this step (a learning rate too high, or no gradient clipping)"
            )


def _log_surplus(count: int) -> None:
    with contextlib.suppress(AssertionError):  # outside a trainer there is no storage
        get_event_storage().put_scalar("metr/surplus_objects", count)


def solve_groups(cost: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """Solve every group of every layer on its own.

    Args:
        cost: ``[L, P]`` of pairs with equal category.
        pairs: int64 ``[4, P]`` image, category, query, object; ordered by image, then query, then object.

    Returns:
        int64 ``[4, M]`` layer, image, query, object of the chosen pairs; pairs of a layer.
    """
    order = np.lexsort((pairs[1], pairs[0]))  # stable: within a group still by query, then object
    image, category, query, target = pairs[:, order]
    cost = cost[:, order]
    starts = np.flatnonzero(np.diff(image, prepend=-1) | np.diff(category, prepend=-1))
    layers = np.arange(len(cost))
    chosen_layer, chosen = [], []
    matched = 0
    for start, stop in zip(starts, [*starts[1:], len(query)]):
        objects = int(np.searchsorted(query[start:stop], query[start], side="right"))
        block = cost[:, start:stop].reshape(len(cost), -1, objects)
        matched += min(block.shape[1:])
        if min(block.shape[1:]) == 1:
            chosen_layer.append(layers)
            chosen.append(start + block.reshape(len(cost), -1).argmin(1))
            continue
        for layer in layers:
            rows, columns = linear_sum_assignment(block[layer])
            chosen_layer.append(np.full(len(rows), layer))
            chosen.append(start + rows * objects + columns)
    if not chosen:
        return np.zeros((4, 0), dtype=np.int64), 0
    index = np.concatenate(chosen)
    return np.stack((np.concatenate(chosen_layer), image[index], query[index], target[index])), matched
