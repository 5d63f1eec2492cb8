"""What encoder and decoder layers share."""

from __future__ import annotations

from typing import Any

from torch import nn

from polydet.layers import FeedForward, xavier_reset
from polydet.layers.mlp import Activation
from polydet.ops import MultiScaleDeformableAttention


class TransformerLayer(nn.Module):
    """Attentions and a feed-forward block, with a norm after each residual (DETR).

    The base class has DETR's dense self-attention; subclasses add what else they attend to.

    Args:
        dim: C. num_heads: of every attention. ffn_dim: hidden width of the feed-forward block.
        dropout: of attentions, residuals and the feed-forward block.
    """

    num_norms = 2
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.add_attentions(dim, num_heads, dropout)
        self.ffn = FeedForward(dim, ffn_dim, dropout, activation)
        for number in range(1, self.num_norms + 1):
            self.add_module(f"norm{number}", nn.LayerNorm(dim))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def add_attentions(self, dim: int, num_heads: int, dropout: float) -> None:
        """Make the attentions, the first time and before anything else."""
        self.self_attn: Any = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, zero biases; deformable attentions keep their own start."""
        xavier_reset(self)
        for child in self.children():
            if isinstance(child, MultiScaleDeformableAttention):
                child.reset_parameters()


class DeformableLayer(TransformerLayer):
    """A layer with a deformable attention (Deformable DETR): `num_points` on each of `num_levels` maps a head."""

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        activation: Activation = "relu",
        num_levels: int = 4,
        num_points: int = 4,
    ) -> None:
        self._sampling = (num_levels, num_points)
        super().__init__(dim, num_heads, ffn_dim, dropout, activation)
