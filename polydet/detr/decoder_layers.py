"""Decoder layers: dense (DETR), conditional (Conditional DETR, DAB-DETR) and deformable cross-attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polydet.ops import MultiScaleDeformableAttention

from .attention import ConditionalCrossAttention, ConditionalSelfAttention
from .layer import DeformableLayer, TransformerLayer
from .structures import Memory


class DecoderLayer(TransformerLayer):
    """Self-attention among queries, cross-attention to the memory, feed-forward; see `TransformerLayer`.

    The base class is DETR's layer; the others replace how queries attend.
    """

    num_norms = 3
    norm3: nn.LayerNorm

    def add_attentions(self, dim: int, num_heads: int, dropout: float) -> None:
        """See `TransformerLayer`."""
        super().add_attentions(dim, num_heads, dropout)
        self.cross_attn: Any = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)

    def bind(self, index: int) -> None:
        """Called once by the decoder with this copy's place in the stack."""

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

    def add_attentions(self, dim: int, num_heads: int, dropout: float) -> None:
        """See `TransformerLayer`."""
        self.self_attn = ConditionalSelfAttention(dim, num_heads, dropout)
        self.cross_attn = ConditionalCrossAttention(dim, num_heads, dropout)

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


class DeformableDecoderLayer(DeformableLayer, DecoderLayer):
    """Cross-attention samples a few points around each query's reference (Deformable DETR)."""

    def add_attentions(self, dim: int, num_heads: int, dropout: float) -> None:
        """See `TransformerLayer`."""
        TransformerLayer.add_attentions(self, dim, num_heads, dropout)
        self.cross_attn = MultiScaleDeformableAttention(dim, num_heads, *self._sampling)

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
