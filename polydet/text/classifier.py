"""Regions and texts in one space: the classifier of every detector here whose classes are words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextSimilarity(nn.Module):
    """Logits of region embeddings against any texts: ``scale * <x, t> + bias``.

    Args:
        unit: regions become unit rows, so that the products are cosines (ScaleDet eq. 5); otherwise they stay as they
            come (DetCLIPv2 with a bias alone).
        scale: factor of the products, 1 / tau. learn_scale: train it, by its logarithm as CLIP does.
        bias: start of a learned scalar that is added to every logit; None: none.
    """

    def __init__(
        self, unit: bool = True, scale: float = 1.0, learn_scale: bool = False, bias: float | None = None
    ) -> None:
        super().__init__()
        self.unit = unit
        self.fixed_scale = scale
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log()) if learn_scale else None
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    @property
    def scale(self) -> Tensor | float:
        """Factor of the products."""
        return self.fixed_scale if self.log_scale is None else self.log_scale.exp()

    def embed(self, x: Tensor) -> Tensor:
        """Region embeddings ``[..., D]``, unit rows (float32) where `unit` holds."""
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) if self.unit else x

    def logits(self, x: Tensor, text: Tensor) -> Tensor:
        """Embedded regions ``[..., D]`` and unit rows ``[n, D]`` to ``[..., n]``, float32 at least."""
        products = x @ text.to(x.dtype).T
        logits = products.to(torch.promote_types(products.dtype, torch.float32)) * self.scale
        return logits if self.bias is None else logits + self.bias


class TextClassifier(TextSimilarity):
    """Region features to the space of the texts by one linear layer.

    Args:
        in_channels: width of the features. text_dim: D of the text encoder.
        scale, learn_scale, bias: see `TextSimilarity`.
    """

    def __init__(
        self,
        in_channels: int,
        text_dim: int,
        scale: float = 1.0,
        learn_scale: bool = False,
        bias: float | None = None,
    ) -> None:
        super().__init__(True, scale, learn_scale, bias)
        self.linear = nn.Linear(in_channels, text_dim)

    def forward(self, features: Tensor) -> Tensor:
        """``[..., in_channels]`` to unit rows ``[..., D]``."""
        return self.embed(self.linear(features))
