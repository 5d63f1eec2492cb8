"""Which labels the classification losses of a step count: federated and joint label spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polydet.layers.federated import sample_federated_labels
from polydet.text import LabelSpace

from .structures import Branch, Targets


class LabelScope(nn.Module):
    """Base class: all labels count for every image.

    Attributes:
        skipped: names of branches that count all labels nevertheless.
    """

    skipped: frozenset[str] = frozenset()

    def mark(self, targets: Targets, x: dict[str, Any]) -> Targets:
        """Objects of an image with `own` and `known` filled in from its dataset dict."""
        return targets

    def weight(self, targets: Sequence[Targets]) -> Tensor | None:
        """Weight of each label, ``[B, K]`` or ``[1, K]``; None: all count."""
        return None

    def restrict(self, branches: Sequence[Branch], targets: Sequence[Targets]) -> list[Branch]:
        """The branches of a step with these weights in their `class_weight`; called once a step."""
        weight = self.weight(targets)
        if weight is None:
            return list(branches)
        return [b if b.name in self.skipped else replace(b, class_weight=_weights(b, weight)) for b in branches]


def _weights(branch: Branch, weight: Tensor) -> Tensor:
    classes = branch.predictions.classes
    if classes is None:
        mine = weight[:, None]
    else:
        mine = weight.expand(len(classes), -1).gather(1, classes)[..., None]
    return mine if branch.class_weight is None else branch.class_weight * mine


class DatasetLabels(LabelScope):
    """Labels of the image's own dataset, or those that somebody has verified (METR; federated datasets).

    Args:
        label_space: which label belongs to which dataset.
        mask_foreign: only labels of the image's own dataset count; otherwise those of other datasets are background
            (the paper's reading of COCO's loss in table 1).
        federated: "none", or "verified": of an image with verified labels, only those with a box and those that are
            verified to be absent count (not those of which there are only groups, or that were cropped away).

    Raises:
        ValueError: an unknown kind of `federated`.
    """

    def __init__(
        self, label_space: LabelSpace, mask_foreign: bool = False, federated: Literal["none", "verified"] = "none"
    ) -> None:
        super().__init__()
        if federated not in ("none", "verified"):
            raise ValueError(f"federated must be 'none' or 'verified', not {federated!r}")
        self.label_space = label_space
        self.mask_foreign, self.federated = mask_foreign, federated

    def mark(self, targets: Targets, x: dict[str, Any]) -> Targets:
        """See `LabelScope`; reads ``dataset_name`` and ``neg_category_ids``.

        Raises:
            ValueError: `mask_foreign` and an image whose dataset is not in the label space.
        """
        dataset = x.get("dataset_name")
        own = None
        if dataset in self.label_space.datasets:
            own = self._mask(self.label_space.mapping(dataset), targets)
            own[targets.labels] = True  # objects that were pasted from an image of another dataset
        elif self.mask_foreign:
            raise ValueError(
                f"image {targets.name} is of dataset {dataset!r}, which is not in the label space of "
                f"{list(self.label_space.datasets)}: mask_foreign needs dataset_name"
            )
        known = own if self.mask_foreign else None
        if self.federated == "verified" and x.get("neg_category_ids") is not None:
            verified = self._mask(x["neg_category_ids"], targets)
            verified[targets.labels] = True  # a positive one without a box left, a group say, may still be in sight
            known = verified if self.mask_foreign or own is None else verified | ~own
        return replace(targets, own=own, known=known)

    def _mask(self, labels: Any, targets: Targets) -> Tensor:
        mask = torch.zeros(len(self.label_space), dtype=torch.bool)
        mask[torch.as_tensor(labels, dtype=torch.int64)] = True
        return mask.to(targets.labels.device)

    def weight(self, targets: Sequence[Targets]) -> Tensor | None:
        """See `LabelScope`."""
        known = stack_known(targets, len(self.label_space))
        return None if known is None else known.float()


class SampledLabels(LabelScope):
    """Only some classes count in a step: those that occur and others drawn by count ** 0.5 (FedLoss, for LVIS).

    The encoder's proposals count all classes, as in Co-DETR's released LVIS configs.

    Args:
        counts: training images of each class.
        num_classes: of the detector.
        sampled: classes a step, those that occur among them.

    Raises:
        ValueError: another number of counts than of classes.
    """

    skipped = frozenset({"enc"})

    def __init__(self, counts: Sequence[float], num_classes: int, sampled: int = 50) -> None:
        super().__init__()
        if len(counts) != num_classes:
            raise ValueError(f"class_counts has {len(counts)} entries for {num_classes} classes")
        self.sampled = sampled
        self.root_counts: Tensor
        self.register_buffer("root_counts", torch.tensor([float(c) for c in counts]).sqrt(), persistent=False)

    def weight(self, targets: Sequence[Targets]) -> Tensor:
        """See `LabelScope`; drawn anew at each call."""
        present = torch.cat([t.labels for t in targets])
        weight = torch.zeros_like(self.root_counts)
        weight[sample_federated_labels(present, self.root_counts, self.sampled)] = 1.0
        return weight[None]


def stack_known(targets: Sequence[Targets], num_classes: int) -> Tensor | None:
    """Labels that count for each image, ``[B, K]`` bool; None: all of them everywhere."""
    masks = [t.known for t in targets]
    if all(mask is None for mask in masks):
        return None
    every = torch.ones(num_classes, dtype=torch.bool, device=targets[0].labels.device)
    return torch.stack([every if mask is None else mask for mask in masks])
