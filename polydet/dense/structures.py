"""What flows between a dense head, its assignment and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from .assignment import IGNORED


@dataclass(frozen=True)
class DensePredictions:
    """Raw outputs of a `DenseHead`, one tensor a level, anchors of a location adjacent.

    `logits` `[B, N_l, C]`, `deltas` `[B, N_l, box_dim]`, `quality` `[B, N_l]` logits of centerness or IoU
    (empty list for a head without such a branch).
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    quality: list[Tensor]

    def flat_logits(self) -> Tensor:
        """All levels, `[B, N, C]` float32."""
        return torch.cat(self.logits, dim=1).float()

    def flat_deltas(self) -> Tensor:
        """All levels, `[B, N, box_dim]` float32."""
        return torch.cat(self.deltas, dim=1).float()

    def flat_quality(self) -> Tensor | None:
        """All levels, `[B, N]` float32, or None."""
        return torch.cat(self.quality, dim=1).float() if self.quality else None


@dataclass(frozen=True)
class DenseTargets:
    """Assignment of a batch: `labels` `[B, N]` (class, `BACKGROUND` or `IGNORED`), `boxes` `[B, N, 4]` xyxy
    pixels of the assigned box (meaningful where `labels` is a class), `matches` `[B, N]`, the box's index."""

    labels: Tensor
    boxes: Tensor
    matches: Tensor

    @property
    def positive(self) -> Tensor:
        """`[B, N]` bool."""
        return self.labels >= 0

    @property
    def num_positives(self) -> Tensor:
        """0-d, what losses are divided by: positives of the batch, an image without any counting as one, as in
        mmdetection."""
        return self.positive.sum(1).clamp(min=1).sum()

    @property
    def used(self) -> Tensor:
        """`[B, N]` bool, everything that is not ignored."""
        return self.labels != IGNORED


def dense_targets(matches: Sequence[Tensor], instances: Sequence[Instances]) -> DenseTargets:
    """Look up labels and boxes of matched ground truth.

    Args:
        matches: per image `[N]` int64 in the convention of `assignment`.
        instances: per image ground truth with `gt_boxes` and `gt_classes`.
    """
    labels, boxes = [], []
    for match, target in zip(matches, instances):
        index = match.clamp(min=0)
        if len(target):
            labels.append(torch.where(match >= 0, target.gt_classes[index], match))
            boxes.append(target.gt_boxes.tensor[index].float())
        else:
            labels.append(match)
            boxes.append(torch.zeros(len(match), 4, device=match.device))
    return DenseTargets(torch.stack(labels), torch.stack(boxes), torch.stack(list(matches)))
