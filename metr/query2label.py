"""Query2Label (Liu et al., 2021), the rival of category extraction in supplementary table 1."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor, nn

from polydet.detr import DecoderLayer, Encoder, Memory
from polydet.detr.meta_arch import image_name
from polydet.detr.structures import token_layout
from polydet.layers import SinePositionEncoding
from polydet.text import LabelSpace

from .category_extraction import category_loss


class LabelDecoderLayer(DecoderLayer):
    """DETR's decoder layer; the first of a stack has no self-attention, since its queries have no content yet."""

    def bind(self, index: int) -> None:
        """Called once with the layer's place in the stack."""
        if index == 0:
            self.self_attn = None
            self.norm1 = nn.Identity()  # type: ignore[assignment]

    def attend_queries(self, content: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """``[B, n, C]``."""
        if self.self_attn is None:
            return torch.zeros_like(content)
        return super().attend_queries(content, position, mask)


@META_ARCH_REGISTRY.register()
class Query2Label(nn.Module):
    """Multi-label classification: one learned query a label looks at the last map of a backbone.

    Args:
        backbone: its last map is read; projected where it has not `encoder`'s width.
        label_space: joint labels, K of them.
        asl: further arguments of `category_loss`.
    """

    def __init__(
        self,
        backbone: Backbone,
        position: SinePositionEncoding,
        encoder: Encoder,
        decoder_layer: DecoderLayer,
        label_space: LabelSpace,
        num_layers: int = 2,
        asl: dict[str, Any] | None = None,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        dim, labels = decoder_layer.dim, len(label_space)
        channels = list(backbone.output_shape().values())[-1].channels or dim
        self.backbone = backbone
        self.project = nn.Identity() if channels == dim else nn.Conv2d(channels, dim, 1)
        self.position, self.encoder = position, encoder
        layers = [copy.deepcopy(decoder_layer) for _ in range(num_layers)]
        for index, layer in enumerate(layers):
            layer.reset_parameters()
            layer.bind(index)
        self.layers = nn.ModuleList(layers)
        self.label_space, self.num_classes = label_space, labels
        self.queries = nn.Embedding(labels, dim)
        # one linear function a label
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(labels, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(labels).uniform_(-bound, bound))
        self.asl = dict(asl or {})
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: dicts with `image` ``[3, H, W]`` RGB 0..255, all of one size, and in training `instances`.

        Returns:
            training: ``{"loss_asl"}``; inference: a dict an image with `class_scores` ``[K]``.

        Raises:
            ValueError: images of different sizes.
        """
        logits = self.classify(self._stack(batched_inputs))
        if not self.training:
            return [{"class_scores": scores} for scores in logits.float().sigmoid()]
        present = torch.zeros_like(logits, dtype=torch.bool)
        for row, x in zip(present, batched_inputs):
            row[x["instances"].gt_classes.to(row.device)] = True
        return {"loss_asl": category_loss(logits, present, **self.asl)}

    def _stack(self, batched_inputs: Sequence[dict[str, Any]]) -> Tensor:
        first = batched_inputs[0]["image"].shape
        for x in batched_inputs:
            if x["image"].shape != first:
                raise ValueError(
                    f"image {image_name(x)} is {tuple(x['image'].shape[1:])}, another of the batch {tuple(first[1:])}: "
                    "Query2Label takes one size, see polydet.data.augmentations.fixed_resize"
                )
        images = torch.stack([x["image"] for x in batched_inputs]).to(self.device)
        return (images - self.pixel_mean) / self.pixel_std

    def classify(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised images to logits ``[B, K]``."""
        feature = self.project(list(self.backbone(images).values())[-1])
        layout, _ = token_layout([(feature.shape[2], feature.shape[3])], None, feature)
        position = self.position(feature).flatten(2).transpose(1, 2).to(feature.dtype)
        memory = self.encoder(Memory(feature.flatten(2).transpose(1, 2), position, layout))
        query = self.queries.weight[None].expand(len(images), -1, -1)
        content = torch.zeros_like(query)
        for layer in self.layers:
            content = layer(content, query, None, None, memory)
        return (content * self.weight).sum(-1) + self.bias
