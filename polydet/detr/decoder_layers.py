"""Decoder layers: dense (DETR), conditional (Conditional DETR, DAB-DETR) and deformable cross-attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polydet.layers import FeedForward, xavier_reset
from polydet.layers.mlp import Activation
from polydet.ops import MultiScaleDeformableAttention

from .attention import ConditionalCrossAttention, ConditionalSelfAttention
from .structures import Memory


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, feed-forward; norms after the residuals.

    The base class is DETR's layer; the others replace how queries attend.
    """

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
        self.self_attn: Any = self._self_attention(dim, num_heads, dropout)
        self.cross_attn: Any = self._cross_attention(dim, num_heads, dropout)
        self.ffn = FeedForward(dim, ffn_dim, dropout, activation)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def _self_attention(self, dim: int, num_heads: int, dropout: float) -> nn.Module:
        return nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)

    def _cross_attention(self, dim: int, num_heads: int, dropout: float) -> nn.Module:
        return nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)

    def bind(self, index: int) -> None:
        """Called once by the decoder with this copy's place in the stack."""

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, zero biases."""
        xavier_reset(self)

    def attend_queries(self, content: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Self-attention: ``[B, Q, C]``; `mask` ``[Q, Q]`` True where blocked."""
        key = content + position
        return self.self_attn(key, key, content, attn_mask=mask, need_weights=False)[0]

    def attend_memory(
        self, content: Tensor, position: Tensor, spatial: Tensor | None, references: Tensor | None, memory: Memory
    ) -> Tensor:
        """Cross-attention: ``[B, Q, C]``."""
        return self.cross_attn(
            content + position,
            memory.tokens + memory.position,
            memory.tokens,
            key_padding_mask=memory.layout.padding_mask,
            need_weights=False,
        )[0]

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        spatial: Tensor | None,
        references: Tensor | None,
        memory: Memory,
        mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            content, position: ``[B, Q, C]``.
            spatial: ``[B, Q, C]`` conditional spatial query, for layers that use one.
            references: ``[B, Q, 2 | 4]`` normalised, for layers that use them.
            mask: ``[Q, Q]`` bool, True where blocked.
        """
        content = self.norm1(content + self.dropout(self.attend_queries(content, position, mask)))
        attended = self.attend_memory(content, position, spatial, references, memory)
        content = self.norm2(content + self.dropout(attended))
        return self.norm3(content + self.ffn(content))


class ConditionalDecoderLayer(DecoderLayer):
    """Content and position are projected apart; cross-attention adds a spatial query (Conditional DETR, DAB-DETR)."""

    def _self_attention(self, dim: int, num_heads: int, dropout: float) -> nn.Module:
        return ConditionalSelfAttention(dim, num_heads, dropout)

    def _cross_attention(self, dim: int, num_heads: int, dropout: float) -> nn.Module:
        return ConditionalCrossAttention(dim, num_heads, dropout)

    def bind(self, index: int) -> None:
        """Only the first layer keeps the projection of the query position."""
        if index > 0:
            self.cross_attn.query_position = None

    def attend_queries(self, content: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Self-attention: ``[B, Q, C]``; `mask` ``[Q, Q]`` True where blocked."""
        return self.self_attn(content, position, mask)

    def attend_memory(
        self, content: Tensor, position: Tensor, spatial: Tensor | None, references: Tensor | None, memory: Memory
    ) -> Tensor:
        """Cross-attention: ``[B, Q, C]``. Raises ValueError where the decoder gives no spatial query."""
        if spatial is None:
            raise ValueError("a conditional decoder layer needs the decoder's `query_position` to make spatial queries")
        return self.cross_attn(content, position, spatial, memory.tokens, memory.position, memory.layout.padding_mask)


class DeformableDecoderLayer(DecoderLayer):
    """Cross-attention samples a few points around each query's reference (Deformable DETR)."""

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

    def _cross_attention(self, dim: int, num_heads: int, dropout: float) -> nn.Module:
        return MultiScaleDeformableAttention(dim, num_heads, *self._sampling)

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices; the cross-attention keeps its own start."""
        xavier_reset(self)
        self.cross_attn.reset_parameters()

    def attend_memory(
        self, content: Tensor, position: Tensor, spatial: Tensor | None, references: Tensor | None, memory: Memory
    ) -> Tensor:
        """Cross-attention: ``[B, Q, C]``. Raises ValueError for queries without references."""
        if references is None:
            raise ValueError("a deformable decoder layer needs queries with references")
        layout = memory.layout
        return self.cross_attn(
            content,
            layout.on_levels(references),
            memory.tokens,
            layout.spatial_shapes,
            padding_mask=layout.padding_mask,
            query_pos=position,
        )
