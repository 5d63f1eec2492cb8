"""One decoder for the whole family: a stack of layers, query positions, and iterative box refinement."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polydet.layers import MLP, encode_anchors, inverse_sigmoid, xavier_reset

from .decoder_layers import DecoderLayer
from .structures import Memory, Queries, TokenLayout


class ConditionalPosition(nn.Module):
    """Learned query positions, and spatial queries from the reference point (Conditional DETR, sec. 3.3)."""

    def __init__(self, dim: int = 256, temperature: float = 10000.0) -> None:
        super().__init__()
        self.dim = dim
        self.temperature = temperature
        self.query_scale = MLP(dim, dim, dim, 2)
        xavier_reset(self)

    def forward(
        self, index: int, content: Tensor, references: Tensor, position: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor]:
        """Position and spatial query of layer `index`, both ``[B, Q, C]``."""
        spatial = encode_anchors(references[..., :2], self.dim // 2, self.temperature)
        if index > 0:
            spatial = spatial * self.query_scale(content)
        if position is None:
            raise ValueError("ConditionalPosition needs a query source with learned positions")
        return position, spatial


class ModulatedAnchorPosition(nn.Module):
    """Positions and width- and height-modulated spatial queries from 4-d anchors (DAB-DETR, sec. 4.4)."""

    def __init__(self, dim: int = 256, temperature: float = 10000.0) -> None:
        super().__init__()
        self.dim = dim
        self.temperature = temperature
        self.position_head = MLP(2 * dim, dim, dim, 2)
        self.query_scale = MLP(dim, dim, dim, 2)
        self.size_head = MLP(dim, dim, 2, 2)
        xavier_reset(self)

    def forward(
        self, index: int, content: Tensor, references: Tensor, position: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor]:
        """Position and spatial query of layer `index`, both ``[B, Q, C]``."""
        sine = encode_anchors(references, self.dim // 2, self.temperature)
        half = self.dim // 2
        spatial = sine[..., : self.dim]
        if index > 0:
            spatial = spatial * self.query_scale(content)
        width, height = self.size_head(content).sigmoid().to(sine.dtype).unbind(-1)
        size = references[..., 2:].clamp(min=1e-6)
        by_height = spatial[..., :half] * (height / size[..., 1])[..., None]
        by_width = spatial[..., half:] * (width / size[..., 0])[..., None]
        return self.position_head(sine), torch.cat((by_height, by_width), dim=-1)


class AnchorPosition(nn.Module):
    """Query positions from the anchors of each layer (DAB-Deformable-DETR, DINO).

    Args:
        scale_by_content: multiply by an MLP of the content from the second layer on (DAB, DN; not DINO).
        relative_to: what the encoded anchors are fractions of: the first level's "map" with a batch's padding (the
            authors of all three, and Co-DINO), or the unpadded "image", which answers in a batch as it does alone.
            The two are one where nothing is padded.
    """

    def __init__(
        self,
        dim: int = 256,
        temperature: float = 10000.0,
        scale_by_content: bool = False,
        relative_to: Literal["map", "image"] = "map",
    ) -> None:
        super().__init__()
        if relative_to not in ("map", "image"):
            raise ValueError(f"relative_to must be map or image, got {relative_to!r}")
        self.relative_to = relative_to
        self.dim = dim
        self.temperature = temperature
        self.position_head = MLP(2 * dim, dim, dim, 2)
        self.query_scale = MLP(dim, dim, dim, 2) if scale_by_content else None
        xavier_reset(self)

    def forward(
        self, index: int, content: Tensor, references: Tensor, position: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, None]:
        """Position ``[B, Q, C]`` of layer `index`."""
        anchors = references if self.relative_to == "image" else layout.on_levels(references)[:, :, 0]
        encoded = self.position_head(encode_anchors(anchors, self.dim // 2, self.temperature))
        if self.query_scale is not None and index > 0:
            encoded = encoded * self.query_scale(content)
        return encoded, None


@dataclass(eq=False)
class DecoderOutput:
    """`hidden` ``[L, B, Q, C]`` (normed); `boxes` ``[L, B, Q, 4]`` cxcywh in (0, 1); `references` ``[L, B, Q, d]``
    what each layer looked at (None: queries without a place)."""

    hidden: Tensor
    boxes: Tensor
    references: list[Tensor | None]


class Decoder(nn.Module):
    """A stack of decoder layers that reads boxes from every layer.

    Args:
        layer: copied `num_layers` times, each copy initialised anew.
        query_position: makes position (and spatial) queries before each layer; None: the query source's own.
        refine: each layer's box is the next layer's reference (Deformable DETR, "iterative refinement").
        look_forward_twice: with `refine`, the box of layer i is decoded from the *undetached* box of layer i-1, so
            its loss also trains layer i-1 (DINO, sec. 3.5). Otherwise the gradient stops there (look forward once).
        norm: LayerNorm on each layer's output before the heads (DETR, DAB, DINO); refinement reads the raw output.
        checkpoint_layers: the first so many layers recompute their activations in the backward pass.
        eps: references are clamped to (eps, 1 - eps) where a box is decoded from them: 1e-5 (Conditional DETR,
            Deformable-DETR, Co-Deformable-DETR) or 1e-3 (DAB-DETR, DN-DETR, DINO, Co-DINO).
    """

    def __init__(
        self,
        layer: DecoderLayer,
        num_layers: int = 6,
        query_position: nn.Module | None = None,
        refine: bool = False,
        look_forward_twice: bool = False,
        norm: bool = False,
        checkpoint_layers: int = 0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if look_forward_twice and not refine:
            raise ValueError("look_forward_twice needs refine")
        copies = [copy.deepcopy(layer) for _ in range(num_layers)]
        for index, copied in enumerate(copies):
            copied.reset_parameters()
            copied.bind(index)
        self.layers = nn.ModuleList(copies)
        self.query_position = query_position
        self.refine = refine
        self.look_forward_twice = look_forward_twice
        self.norm = nn.LayerNorm(layer.dim) if norm else None
        self.checkpoint_layers = checkpoint_layers
        self.eps = eps

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    def forward(self, queries: Queries, memory: Memory, box_heads: nn.ModuleList) -> DecoderOutput:
        """
        Args:
            box_heads: one a layer, or one for all: ``[B, Q, C] -> [B, Q, 4]`` change of the reference's logit.
        """
        content, references = queries.content, queries.references
        origin = references  # what the layer's box is decoded from; carries gradient where `references` does not
        hidden, boxes, seen = [], [], []
        for index in range(self.num_layers):
            seen.append(references)
            content = self._run(index, content, references, queries, memory)
            head = per_layer(box_heads, index)
            read = content if self.norm is None else self.norm(content)
            hidden.append(read)
            boxes.append(decode_boxes(without_autocast(head, read), origin, queries.content.dtype, self.eps))
            if self.refine and index + 1 < self.num_layers:
                refined = decode_boxes(without_autocast(head, content), references, queries.content.dtype, self.eps)
                references = refined.detach()
                origin = refined if self.look_forward_twice else references
        return DecoderOutput(torch.stack(hidden), torch.stack(boxes), seen)

    def _run(self, index: int, content: Tensor, references: Tensor | None, queries: Queries, memory: Memory) -> Tensor:
        if self.query_position is None:
            position, spatial = queries.position, None
        else:
            position, spatial = self.query_position(index, content, references, queries.position, memory.layout)
        args = (content, position, spatial, references, memory, queries.attention_mask)
        if index < self.checkpoint_layers and self.training:
            return checkpoint(self.layers[index], *args, use_reentrant=False)
        return self.layers[index](*args)


def per_layer(heads: Any, index: int) -> nn.Module:
    """The head of a layer, where one head may serve all."""
    return heads[index if len(heads) > 1 else 0]


def without_autocast(head: nn.Module, features: Tensor) -> Tensor:
    """What a box head says in the precision of its weights: bfloat16 logits tell boxes apart by a pixel or two."""
    weight = next(head.parameters(), features)
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(weight.dtype))


def decode_boxes(
    delta: Tensor, reference: Tensor | None, dtype: torch.dtype | None = None, eps: float = 1e-5
) -> Tensor:
    """Boxes in (0, 1) from a change of the reference's logit.

    Args:
        delta: ``[B, Q, 4]``.
        reference: ``[B, Q, 2]`` (moves the centre only), ``[B, Q, 4]``, or None.
        dtype: precision of the result where there is no reference; boxes never fall below float32.
        eps: the reference is clamped to (eps, 1 - eps).

    Returns:
        ``[B, Q, 4]`` cxcywh.
    """
    delta = delta.to(reference.dtype if reference is not None else dtype or delta.dtype)
    if delta.dtype in (torch.float16, torch.bfloat16):
        delta = delta.float()
    if reference is None:
        return delta.sigmoid()
    logit = inverse_sigmoid(reference, eps)
    if reference.shape[-1] == 2:
        return torch.cat((delta[..., :2] + logit, delta[..., 2:]), dim=-1).sigmoid()
    return (delta + logit).sigmoid()
