"""CBNetV2: two equal backbones, the assistant's maps feeding the lead's stages (Liang et al., TIP 2022)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from timm.models import checkpoint_seq
from torch import Tensor, nn

from polydet.backbones.timm_backbone import TimmBackbone

Maps = dict[str, Tensor]


class CBNet(Backbone):
    """Dense higher-level composition: stage i of the lead also reads stages i and above of the assistant.

    The connections start at zero, so that a fresh composite backbone computes what its lead alone computes.

    Args:
        assistant, lead: Swin backbones of one architecture, all four maps of each returned.

    Raises:
        ValueError: backbones that are not Swin transformers or differ in channels.
    """

    def __init__(self, assistant: TimmBackbone, lead: TimmBackbone) -> None:
        super().__init__()
        for backbone in (assistant, lead):
            if not hasattr(backbone.body, "patch_embed") or not hasattr(backbone.body, "layers_3"):
                raise ValueError("CBNet composes Swin transformers that return res2 to res5")
        shapes = lead.output_shape()
        if {k: v.channels for k, v in assistant.output_shape().items()} != {k: v.channels for k, v in shapes.items()}:
            raise ValueError("the assistant and the lead of a CBNet must have the same channels")
        self.assistant, self.lead = assistant, lead
        self.names = list(shapes)
        channels = [shapes[name].channels for name in self.names]
        self.connections = nn.ModuleList(
            nn.ModuleList(nn.Linear(channels[j], channels[i]) for j in range(i, len(channels)))
            for i in range(len(channels))
        )
        for linear in self.connections.modules():
            if isinstance(linear, nn.Linear):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward_pair(self, image: Tensor) -> tuple[Maps, Maps]:
        """``image [B, 3, H, W]`` -> the assistant's and the lead's ``{res{k}: [B, C_k, H / 2**k, W / 2**k]}``."""
        image = F.pad(image, (0, -image.shape[-1] % 4, 0, -image.shape[-2] % 4))
        raw = _stages(self.assistant, image, None)
        feeds = []
        for i, linears in enumerate(self.connections):
            size = raw[i].shape[1:3]
            parts = []
            for linear, feature in zip(cast(nn.ModuleList, linears), raw[i:]):
                part = linear(feature).permute(0, 3, 1, 2)
                parts.append(F.interpolate(part, size=size, mode="nearest").permute(0, 2, 3, 1))
            feeds.append(torch.stack(parts).sum(0))
        return self._finish(self.assistant, raw), self._finish(self.lead, _stages(self.lead, image, feeds))

    def forward(self, image: Tensor | Maps) -> Maps:
        """Maps of the lead. Maps that were computed before pass through, so that an FPN can be run on either."""
        if isinstance(image, dict):
            return image
        return self.forward_pair(image)[1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return self.lead.output_shape()

    @property
    def size_divisibility(self) -> int:
        """Input sides must be multiples of the largest stride."""
        return self.lead.size_divisibility

    def _finish(self, backbone: TimmBackbone, raw: list[Tensor]) -> Maps:
        if backbone.out_norms is not None:
            raw = [norm(m) for norm, m in zip(backbone.out_norms, raw)]
        return {name: m.permute(0, 3, 1, 2).contiguous() for name, m in zip(self.names, raw)}


def _stages(backbone: TimmBackbone, image: Tensor, feeds: list[Tensor] | None) -> list[Tensor]:
    """Stage outputs of a Swin transformer, channels last, ``feeds`` being added where the stages' blocks start."""
    body: Any = backbone.body
    x = body.patch_embed(image)
    outputs = []
    for i in range(4):
        stage = getattr(body, f"layers_{i}")
        x = stage.downsample(x)
        if feeds is not None:
            x = x + feeds[i]
        x = checkpoint_seq(stage.blocks, x) if stage.grad_checkpointing else stage.blocks(x)
        outputs.append(x)
    return outputs


class CBNetFPN(FPN):
    """One FPN, with one set of weights, on both backbones of a :class:`CBNet`."""

    def forward_pair(self, image: Tensor) -> tuple[Maps, Maps]:
        """Pyramids of the assistant and of the lead."""
        bottom_up = cast(CBNet, self.bottom_up)
        assistant, lead = bottom_up.forward_pair(image)
        return super().forward(assistant), super().forward(lead)
