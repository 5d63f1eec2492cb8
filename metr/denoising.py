"""Contrastive denoising with language embeddings in place of a label table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from polydet.detr import Denoising, DenoisingQueries, Targets


@dataclass(eq=False)
class DatasetTargets(Targets):
    """Objects of an image, and which labels may be said of it.

    Attributes:
        own: ``[K]`` bool, labels of the image's dataset; None: all.
        known: ``[K]`` bool, labels whose presence or absence is known; None: all.
    """

    own: Tensor | None = None
    known: Tensor | None = None


class LanguageDenoising(Denoising):
    """Noised objects whose content is the language embedding of a (possibly wrong) category.

    Wrong categories come from the image's own dataset. A noised object is scored against its *true* category: the
    positive should match it, the negative should not. The losses are divided as DINO's, see `Denoising`.
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
        super().__init__(1, dim, num_queries, **shared, see_matching=see_matching, normalizer=normalizer)
        self._language: Tensor | None = None

    def make_embedding(self, num_classes: int, dim: int) -> nn.Embedding | None:
        """None: the language embeddings are the table."""
        return None

    def embed(self, labels: Tensor) -> Tensor:
        """Projected language embeddings ``[n, C]``."""
        assert self._language is not None
        content = self._language[labels]
        return content if labels.numel() else content + 0.0 * self._language.sum()

    def flip(self, labels: Tensor, targets: Sequence[Targets], image: Tensor) -> Tensor:
        """Random categories of each image's own dataset."""
        assert self._language is not None
        own = [getattr(target, "own", None) for target in targets]
        every = torch.ones(len(self._language), dtype=torch.bool, device=labels.device)
        if not len(labels) or all(mask is None for mask in own):
            return torch.randint_like(labels, len(self._language))
        allowed = torch.stack([every if mask is None else mask for mask in own]).float()
        return torch.multinomial(allowed[image], 1)[:, 0]  # a list of categories would make the GPU wait for its length

    def forward(self, targets: Sequence[Targets], language: Tensor | None = None) -> DenoisingQueries:
        """Noised objects; `language` ``[K, C]`` are the projected embeddings of the training categories."""
        self._language = language
        try:
            return super().forward(targets)
        finally:
            self._language = None


def true_classes(noised: DenoisingQueries, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
    """The true category of each denoising query and whether it stands for an object, both ``[B, D]``.

    Query q stands for object ``q % most`` of its image, `most` being the most objects of an image of the batch.
    """
    labels = nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True)
    most = labels.shape[1]
    target = torch.arange(noised.num_queries, device=labels.device) % max(most, 1)
    counts = torch.tensor([len(t) for t in targets], device=labels.device)
    return labels[:, target], target[None] < counts[:, None]
