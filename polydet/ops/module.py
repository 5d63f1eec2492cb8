"""Multi-scale deformable attention as a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .dispatch import backend
from .functional import ms_deform_attn_fused
from .reference import attention_weights, sampling_locations
from .shapes import Shapes, cached_query_order


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few sampled points of every level (Deformable DETR, sec. 4.1).

    Parameters are named and laid out as in Deformable-DETR, so its checkpoints load.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        tile_queries: bool = False,
        deterministic: bool | None = None,
    ) -> None:
        """
        Args:
            embed_dim: channels of queries, values and output, C; a multiple of ``num_heads``.
            num_levels: feature levels, L.
            num_points: samples per level and head, P.
            tile_queries: for an encoder, whose queries are the tokens: a GPU works through them in 8 x 8 tiles.
                Only where sizes come as plain numbers; the result is the same.
            deterministic: see :func:`polydet.ops.ms_deform_attn`.
        Raises:
            ValueError: if ``num_heads`` does not divide ``embed_dim``.
        """
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.tile_queries = tile_queries
        self.deterministic = deterministic
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Deformable-DETR's start: head h looks in direction 2 pi h / H, point p at p + 1 pixels, weights equal."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # [H, 1, P, 2]
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        padding_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
        level_start_index: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: ``[B, Q, C]``.
            reference_points: ``[B, Q, L, 2]`` (x, y) or ``[B, Q, L, 4]`` (cx, cy, w, h), normalised to 0..1.
            value: ``[B, S, C]``, the levels flattened row by row, one after the other.
            spatial_shapes: (height, width) of each level: ``[L, 2]`` integer tensor, or pairs of numbers (better:
                nothing waits for the GPU).
            padding_mask: ``[B, S]`` bool, True where ``value`` is padding; those tokens count as zero.
            query_pos: ``[B, Q, C]`` added to the query.
            level_start_index: ``[L]``; None: the levels lie without gaps.
        Returns:
            ``[B, Q, C]``.
        """
        batch, tokens, _ = value.shape
        projected = self.value_proj(value)
        if padding_mask is not None:
            projected = projected.masked_fill(padding_mask[..., None], 0)
        projected = projected.view(batch, tokens, self.num_heads, self.embed_dim // self.num_heads)
        offsets, logits = self._offsets_and_logits(query, query_pos)
        output = ms_deform_attn_fused(
            projected,
            spatial_shapes,
            level_start_index,
            reference_points,
            offsets,
            logits,
            query_order=self._query_order(query, spatial_shapes),
            deterministic=self.deterministic,
        )
        return self.output_proj(output)

    def sampling(
        self,
        query: Tensor,
        reference_points: Tensor,
        spatial_shapes: Shapes,
        query_pos: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Where :meth:`forward` looks and how much each sample counts, for analysis and drawing.

        Returns:
            locations ``[B, Q, H, L, P, 2]`` normalised (x, y) and weights ``[B, Q, H, L, P]``.
        """
        offsets, logits = self._offsets_and_logits(query, query_pos)
        return sampling_locations(reference_points, offsets, spatial_shapes), attention_weights(logits)

    def _query_order(self, query: Tensor, spatial_shapes: Shapes) -> Tensor | None:
        if not self.tile_queries or isinstance(spatial_shapes, Tensor) or backend(query.device) != "triton":
            return None
        return cached_query_order(spatial_shapes, query.device)

    def _offsets_and_logits(self, query: Tensor, query_pos: Tensor | None) -> tuple[Tensor, Tensor]:
        if query_pos is not None:
            query = query + query_pos
        shape = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        return self.sampling_offsets(query).view(*shape, 2), self.attention_weights(query).view(shape)
