"""Parts that help a DETR in training only: one more loss, or a branch of queries of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detectron2.structures import ImageList
from torch import Tensor, nn

from .structures import Branch, Memory, Predictions, Queries, Targets

if TYPE_CHECKING:
    from .meta_arch import DETR


@dataclass(frozen=True)
class TrainingStep:
    """What is known once the decoder has run: the `inputs` (Detectron2's dicts), the padded `images`, and what the
    detector made of them."""

    inputs: Sequence[dict[str, Any]]
    images: ImageList
    targets: Sequence[Targets]
    memory: Memory
    queries: Queries
    predictions: Predictions


class Auxiliary(nn.Module):
    """Base class; `DETR` keeps each as ``detector.<name>``, calls it in every training step and leaves it out of
    inference."""

    name: str

    def forward(self, detector: DETR, step: TrainingStep) -> tuple[dict[str, Tensor], list[Branch]]:
        """Weighted scalar losses, and branches for the detector's criterion."""
        raise TypeError(f"{type(self).__name__} must define forward(detector, step)")
