"""ScaleDet's labels for the queries of a DETR: hard ones over a label space, and soft ones by the words' similarity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from polydet.detr import ClassLoss, EmbeddingLoss
from polydet.detr.criterion import one_hot
from polydet.text import LabelSpace, TextEncoder, Vocabulary
from scaledet.losses import SoftLabelTargets, duplicate_labels, soft_label_loss


class HardLabels(ClassLoss):
    """Binary cross-entropy against the one-hot label, summed over the labels of all datasets (eq. 6).

    Args:
        label_space: the joint labels. text_encoder, templates: as of the detector, to find labels with one embedding.
        ignore_duplicates: a label with the embedding of the query's own (the "person" of another dataset) is no
            negative of it, as ``dup="ignore"`` of `LabelLoss`.
    """

    duplicates: Tensor | None

    def __init__(
        self,
        label_space: LabelSpace,
        text_encoder: TextEncoder,
        templates: str | Sequence[str] = "photo",
        ignore_duplicates: bool = True,
    ) -> None:
        super().__init__()
        same = None
        if ignore_duplicates:
            text = Vocabulary.build(label_space.names, text_encoder, templates, unique=False).embeddings
            others = duplicate_labels(text)
            if others.shape[1]:
                filler = len(text)
                same = torch.zeros(len(text), filler + 1, dtype=torch.bool)
                same = same.scatter_(1, torch.where(others < 0, filler, others), True)[:, :filler]
        self.register_buffer("duplicates", same, persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, quality: Tensor, weight: Tensor | None, normalizer: Tensor
    ) -> Tensor:
        """See `ClassLoss`."""
        target = one_hot(labels, torch.ones_like(quality), logits.shape[-1])
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.duplicates is not None:
            ignored = self.duplicates[labels.clamp(min=0)] & (labels >= 0)[..., None]
            loss = loss.masked_fill(ignored, 0.0)
        if weight is not None:
            loss = loss * weight
        return loss.flatten(1).sum(1) / normalizer


class SoftLabels(EmbeddingLoss):
    """Squared error between a query's cosines with all labels and its own label's similarities, the mean over labels
    (eq. 7), of queries that stand for an object.

    Args:
        label_space, text_encoder, templates: as of the detector.
        weight: lambda of eq. 8. The paper's 10 goes with 2,249 labels, see ``docs/scaledet.md`` for fewer.
    """

    name = "soft"
    gram: Tensor
    cross: Tensor
    square: Tensor

    def __init__(
        self,
        label_space: LabelSpace,
        text_encoder: TextEncoder,
        templates: str | Sequence[str] = "photo",
        weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        soft = SoftLabelTargets(Vocabulary.build(label_space.names, text_encoder, templates, unique=False).embeddings)
        for name in ("gram", "cross", "square"):
            self.register_buffer(name, getattr(soft, name), persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, normalizer: Tensor) -> Tensor:
        """See `EmbeddingLoss`."""
        labels = torch.where(labels < 0, len(self.square), labels).flatten(1)
        each = [
            soft_label_loss(rows, of_layer, self.gram, self.cross, self.square)
            for rows, of_layer in zip(embeddings.flatten(1, 2), labels)
        ]
        return self.weight * torch.stack(each) / normalizer
