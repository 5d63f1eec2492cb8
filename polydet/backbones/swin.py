"""Swin's shifted windows as its detectors compute them, on timm's blocks."""

from typing import Any

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn


class _PadsFirst:
    """Pads a map to whole windows before it is shifted.

    timm's blocks shift first. Where a map is not a multiple of the window, their attention mask is then off by the
    padding, and tokens of opposite borders of the image attend to each other.
    """

    window_size: tuple[int, int]

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        base: Any = super()
        return base._attn(padded)[:, :height, :width]


class SwinBlock(_PadsFirst, SwinTransformerBlock):
    """timm's block of Swin, padded first."""


class SwinV2Block(_PadsFirst, SwinTransformerV2Block):
    """timm's block of Swin V2, padded first."""


def pad_before_shift(body: nn.Module) -> None:
    """Make the Swin blocks of a timm model pad before they shift; parameters and their names stay."""
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = SwinBlock
        elif type(module) is SwinTransformerV2Block:
            module.__class__ = SwinV2Block
