"""Contrastive denoising with language embeddings in place of a label table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from polydet.detr import Denoising, DenoisingQueries, Targets


class LanguageDenoising(Denoising):
    """Noised objects whose content is the language embedding of a (possibly wrong) category.

    Wrong categories come from the image's own dataset. A noised object is scored against its *true* category: the
    positive should match it, the negative should not. Filler of images with fewer objects does not count. The losses
    are divided as DINO's, see `Denoising`.
    """

    def __init__(
        self,
        dim: int = 256,
        num_queries: int = 100,
        label_noise: float = 0.25,
        box_noise: float = 1.0,
        see_matching: bool = True,
        normalizer: Literal["pairs", "objects", "local"] = "objects",
    ) -> None:
        shared = {"label_noise": label_noise, "box_noise": box_noise}
        super().__init__(None, dim, num_queries, **shared, see_matching=see_matching, normalizer=normalizer)

    def forward(self, targets: Sequence[Targets], contents: Tensor | None = None) -> DenoisingQueries:
        """Noised objects; `contents` ``[K, C]`` are the projected embeddings of the training categories."""
        noised = super().forward(targets, contents)
        classes, real = true_classes(noised, targets)
        return replace(noised, classes=classes, class_weight=real[..., None].float())


def true_classes(noised: DenoisingQueries, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
    """The true category of each denoising query and whether it stands for an object, both ``[B, D]``.

    Query q stands for object ``q % most`` of its image, `most` being the most objects of an image of the batch.
    """
    labels = nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True)
    most = labels.shape[1]
    target = torch.arange(noised.num_queries, device=labels.device) % max(most, 1)
    counts = torch.tensor([len(t) for t in targets], device=labels.device)
    return labels[:, target], target[None] < counts[:, None]
