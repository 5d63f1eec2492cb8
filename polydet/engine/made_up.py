"""Random rows in place of text encoders whose weights would be downloaded: for sizes, times and pictures of a model."""

from collections.abc import Sequence

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from polydet.text import OpenClipEncoder


class MadeUpRows:
    """A text encoder that gives a random unit row for every text."""

    id = "made up"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit rows ``[n, dim]``."""
        return nn.functional.normalize(torch.randn(len(texts), self.dim, device="cpu"), dim=-1)


def make_up_words(model: DictConfig) -> None:
    """Encoders whose weights would be downloaded give way to `MadeUpRows` of their width."""
    for key, node in list(model.items()):
        if not isinstance(node, DictConfig):
            continue
        if node.get("_target_") in (OpenClipEncoder, f"{OpenClipEncoder.__module__}.{OpenClipEncoder.__name__}"):
            model[key] = L(MadeUpRows)(dim=instantiate(node).dim)
        else:
            make_up_words(node)
