"""What AlignDet needs from a detector, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from aligndet.contrastive import BACKGROUND

Task = str
TASKS: tuple[Task, ...] = ("classification", "regression")


@dataclass
class BoxSamples:
    """Embeddings of sampled predicted boxes of all images of one view.

    Attributes:
        embeddings: ``[n, D]``, not normalised.
        labels: int64 ``[n]`` global index of the assigned proposal, -1 for background.
        weight: factor of the contrastive loss of this set.
    """

    embeddings: Tensor
    labels: Tensor
    weight: float = 1.0


@dataclass
class ViewOutput:
    """One detector on one view: its own losses (empty without ``with_losses``) and sets of box embeddings.

    Of several sets, the last is that of the head whose boxes are the detector's result.
    """

    samples: list[BoxSamples]
    losses: dict[str, Tensor] = field(default_factory=dict)


def projector(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Two-layer MLP with ReLU (MoCo v2's), zero biases.

    Embeddings are normalised later: without biases the start does not depend on how small the features of a fresh
    head are.
    """
    layers = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_features))
    for layer in (layers[0], layers[2]):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    return layers


def with_proposal_codes(instances: Sequence[Instances], num_classes: int) -> list[Instances]:
    """Targets whose class *is* the proposal: ``gt_classes = num_classes + 1 + gt_ids``.

    The detector's own assignment then labels every anchor, point or box with its proposal, while ``num_classes``
    keeps meaning background and -1 ignore: nothing in the assignment changes (eq. 1).
    """
    coded = []
    for one in instances:
        copy = Instances(one.image_size)
        copy.gt_boxes = one.gt_boxes
        copy.gt_classes = one.gt_ids + (num_classes + 1)
        coded.append(copy)
    return coded


def proposal_of_code(codes: Tensor, num_classes: int) -> Tensor:
    """Codes of :func:`with_proposal_codes` -> proposal index, -1 for background; any shape."""
    return torch.where(codes > num_classes, codes - (num_classes + 1), BACKGROUND)


class DetectorAdapter(nn.Module, ABC):
    """A detector and a projector in place of its classifier.

    Class attributes name modules by prefix *within the detector*; ``*`` stands for one path component:

    Attributes:
        backbone: the part that stays frozen.
        groups: modules by the paper's names (table 9), e.g. ``{"neck": ("backbone.fpn_lateral*",)}``.
        predictors: final layers that do not transfer.
        unused: modules without a part in pre-training, the class predictor first of all.
        only: what learns from one task alone, and so is unused without that task (table 10).
        classification_losses: beginnings of the names of losses that belong to classification; all others are
            regression.
        copied: parameters that the momentum detector copies instead of averaging.
    """

    backbone: str = "backbone.bottom_up"
    groups: Mapping[str, tuple[str, ...]] = {}
    predictors: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    only: Mapping[Task, tuple[str, ...]] = {}
    classification_losses: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    @abstractmethod
    def forward(self, views: list[dict[str, Any]], with_losses: bool) -> ViewOutput:
        """Predict, assign and embed.

        Args:
            views: one dict per image with ``image`` uint8 ``[3, H, W]`` and ``instances`` (``gt_boxes`` xyxy pixels,
                ``gt_classes`` pseudo-class, ``gt_ids`` proposal index, unique over the list).
            with_losses: also compute the detector's own losses.
        """

    def ranked_boxes(self, views: list[dict[str, Any]], limit: int) -> list[Tensor]:
        """The ``limit`` boxes of each image that the detector itself ranks highest without a classifier (figure 5).

        Returns:
            one ``[k, 4]`` per image, xyxy pixels of the view.

        Raises:
            TypeError: a detector whose classifier is all that ranks its boxes.
        """
        raise TypeError(f"{type(self.detector).__name__} does not rank boxes without a classifier")

    def targets(self, views: list[dict[str, Any]]) -> list[Instances]:
        """The views' instances on the detector's device."""
        return [view["instances"].to(self.detector.device) for view in views]
