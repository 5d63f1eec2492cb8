"""Transformer encoders over image tokens: dense (DETR) and deformable."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polydet.layers import MLP, xavier_reset
from polydet.ops import MultiScaleDeformableAttention

from .layer import DeformableLayer, TransformerLayer
from .structures import Memory, TokenLayout


class EncoderLayer(TransformerLayer):
    """Self-attention over all tokens and a feed-forward block (DETR); see `TransformerLayer`."""

    def attend(self, tokens: Tensor, position: Tensor, layout: TokenLayout) -> Tensor:
        """``[B, S, C]`` tokens and positions to attended tokens."""
        key = tokens + position
        return self.self_attn(key, key, tokens, key_padding_mask=layout.padding_mask, need_weights=False)[0]

    def forward(self, tokens: Tensor, position: Tensor, layout: TokenLayout) -> Tensor:
        """``[B, S, C]`` to the same."""
        tokens = self.norm1(tokens + self.dropout(self.attend(tokens, position, layout)))
        return self.norm2(tokens + self.ffn(tokens))


class DeformableEncoderLayer(DeformableLayer, EncoderLayer):
    """Multi-scale deformable self-attention over the tokens of all levels (Deformable DETR)."""

    def add_attentions(self, dim: int, num_heads: int, dropout: float) -> None:
        """See `TransformerLayer`."""
        self.self_attn = MultiScaleDeformableAttention(dim, num_heads, *self._sampling, tile_queries=True)

    def attend(self, tokens: Tensor, position: Tensor, layout: TokenLayout) -> Tensor:
        """``[B, S, C]`` tokens and positions to attended tokens."""
        return self.self_attn(
            tokens,
            layout.on_levels(layout.centers),
            tokens,
            layout.spatial_shapes,
            padding_mask=layout.padding_mask,
            query_pos=position,
        )


class Encoder(nn.Module):
    """A stack of encoder layers.

    Args:
        layer: copied `num_layers` times, each copy initialised anew.
        norm: applied to the output (None in every member with norms after residuals).
        scale_position: DAB-DETR: positions are multiplied by an MLP of the tokens before each layer.
        checkpoint_layers: the first so many layers recompute their activations in the backward pass.
    """

    def __init__(
        self,
        layer: EncoderLayer,
        num_layers: int = 6,
        norm: nn.Module | None = None,
        scale_position: bool = False,
        checkpoint_layers: int = 0,
    ) -> None:
        super().__init__()
        copies = [copy.deepcopy(layer) for _ in range(num_layers)]
        for copied in copies:
            copied.reset_parameters()
        self.layers = nn.ModuleList(copies)
        self.norm = norm
        dim = layer.dim
        self.position_scale = MLP(dim, dim, dim, 2) if scale_position else None
        self.checkpoint_layers = checkpoint_layers
        if self.position_scale is not None:
            xavier_reset(self.position_scale)

    def forward(self, memory: Memory) -> Memory:
        """Tokens ``[B, S, C]`` to encoded tokens; position and layout stay."""
        tokens, layout = memory.tokens, memory.layout
        for i, layer in enumerate(self.layers):
            position = memory.position
            if self.position_scale is not None:
                position = position * self.position_scale(tokens)
            if i < self.checkpoint_layers and self.training:
                tokens = checkpoint(layer, tokens, position, layout, use_reentrant=False)
            else:
                tokens = layer(tokens, position, layout)
        if self.norm is not None:
            tokens = self.norm(tokens)
        return replace(memory, tokens=tokens)
