"""Attention with content and position kept apart (Conditional DETR, DAB-DETR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention on projected tensors; scaled by the width of a query head.

    Args:
        query: ``[B, Q, Ck]``. key: ``[B, S, Ck]``. value: ``[B, S, Cv]``.
        mask: bool, broadcastable to ``[B, 1, Q, S]``, True where attention is blocked.

    Returns:
        ``[B, Q, Cv]``.
    """
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    allowed = None if mask is None else ~mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


class ConditionalSelfAttention(nn.Module):
    """Self-attention whose queries and keys are the sum of separately projected content and position."""

    def __init__(self, dim: int = 256, num_heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim)
        self.key_content = nn.Linear(dim, dim)
        self.key_position = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, content: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, Q, C]`` content and position; `mask` ``[Q, Q]`` True where blocked."""
        query = self.query_content(content) + self.query_position(position)
        key = self.key_content(content) + self.key_position(position)
        dropout = self.dropout if self.training else 0.0
        attended = dot_product_attention(query, key, self.value(content), self.num_heads, mask, dropout)
        return self.out(attended)


class ConditionalCrossAttention(nn.Module):
    """Cross-attention on [content, spatial] halves, concatenated head by head (Conditional DETR, eq. 2).

    Only the first layer of a decoder also adds the projected query position to the content
    (`add_query_position`).
    """

    def __init__(
        self, dim: int = 256, num_heads: int = 8, dropout: float = 0.0, add_query_position: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content = nn.Linear(dim, dim)
        self.query_position: nn.Linear | None = nn.Linear(dim, dim) if add_query_position else None
        self.query_spatial = nn.Linear(dim, dim)
        self.key_content = nn.Linear(dim, dim)
        self.key_position = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        spatial: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            content, position, spatial: ``[B, Q, C]``.
            memory, memory_position: ``[B, S, C]``.
            padding_mask: ``[B, S]`` True on padding.
        """
        query, key = self.query_content(content), self.key_content(memory)
        key_position = self.key_position(memory_position)
        if self.query_position is not None:
            query = query + self.query_position(position)
            key = key + key_position
        query = self._join(query, self.query_spatial(spatial))
        key = self._join(key, key_position)
        mask = None if padding_mask is None else padding_mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        return self.out(dot_product_attention(query, key, self.value(memory), self.num_heads, mask, dropout))

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        halves = [t.unflatten(-1, (self.num_heads, -1)) for t in (a, b)]
        return torch.cat(halves, dim=-1).flatten(-2)
