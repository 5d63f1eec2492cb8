"""From encoder tokens to the pyramid of the auxiliary heads (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class MultiScaleAdapter(nn.Module):
    """Adds coarser levels by stride-2 convolutions and finer ones by bilinear upsampling and a convolution.

    A multi-scale encoder gets one coarser level. A single-scale one becomes a pyramid, two levels up and two down,
    as ViTDet does.

    Args:
        in_strides: of the encoder's maps, pixels, fine to coarse, each twice the one before.
        dim: channels.
        up, down: levels added below and above; None: by the number of maps, as above.

    Raises:
        ValueError: strides that do not double.
    """

    def __init__(
        self, in_strides: Sequence[int], dim: int = 256, up: int | None = None, down: int | None = None
    ) -> None:
        super().__init__()
        strides = list(in_strides)
        if not strides or any(b != 2 * a for a, b in zip(strides, strides[1:])):
            raise ValueError(f"auxiliary heads need encoder maps whose strides double, got {strides}")
        single = len(strides) == 1
        up = (2 if single else 0) if up is None else up
        down = (2 if single else 1) if down is None else down
        self.up = nn.ModuleList(_block(dim, 1) for _ in range(up))
        self.down = nn.ModuleList(_block(dim, 2) for _ in range(down))
        finer = [strides[0] // 2 ** (i + 1) for i in range(up)][::-1]
        coarser = [strides[-1] * 2 ** (i + 1) for i in range(down)]
        self.strides = tuple(finer + strides + coarser)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Encoder maps `[B, C, H_l, W_l]` to one map a stride of `strides`."""
        pyramid = list(maps)
        for block in self.up:
            finest = F.interpolate(pyramid[0], scale_factor=2, mode="bilinear", align_corners=False)
            pyramid.insert(0, block(finest))
        for block in self.down:
            pyramid.append(block(pyramid[-1]))
        return pyramid


def _block(dim: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(dim, dim, 3, stride=stride, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.GroupNorm(32, dim))
