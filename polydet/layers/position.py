"""Sine encodings of image positions and of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sine_encoding(coordinates: Tensor, dim: int, temperature: float = 10000.0, scale: float = 2 * math.pi) -> Tensor:
    """Encode each coordinate by `dim` sines and cosines of geometrically spaced frequencies.

    Args:
        coordinates: ``[..., n]``; in [0, 1] where `scale` is 2 pi.
        dim: channels of each coordinate, even.

    Returns:
        ``[..., n * dim]``, coordinate by coordinate, sine and cosine alternating ("Attention Is All You Need", 3.5).
    """
    powers = torch.arange(dim // 2, device=coordinates.device, dtype=coordinates.dtype) * (2.0 / dim)
    angles = (coordinates * scale)[..., None] / temperature**powers
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def encode_anchors(anchors: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of points or boxes in the order y, x(, w, h) that conditional decoders learn from.

    Args:
        anchors: ``[..., 2]`` (cx, cy) or ``[..., 4]`` (cx, cy, w, h), normalised.
        dim: channels of each coordinate.
    """
    y_first = torch.cat((anchors[..., 1:2], anchors[..., 0:1], anchors[..., 2:]), dim=-1)
    return sine_encoding(y_first, dim, temperature)


class SinePositionEncoding(nn.Module):
    """Position of every cell of a feature map, measured over the unpadded part of its image.

    Args:
        dim: channels, half of them for y and half for x.
        temperature: 10000 in DETR and Deformable-DETR, 20 in DAB-DETR and DINO.
        offset: added to the 1-based cell index before it is normalised: 0 in DETR, -0.5 (cell centre)
            in Deformable-DETR.
    """

    def __init__(self, dim: int = 256, temperature: float = 10000.0, offset: float = 0.0) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {dim}")
        self.dim = dim
        self.temperature = temperature
        self.offset = offset

    def forward(self, feature: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """``[B, C, H, W]`` and its ``[B, H, W]`` mask (True on padding) to ``[B, dim, H, W]`` (float32 or float64)."""
        batch, _, height, width = feature.shape
        dtype = torch.float64 if feature.dtype == torch.float64 else torch.float32
        if padding_mask is None:
            y = torch.arange(1, height + 1, device=feature.device, dtype=dtype)[:, None].expand(height, width)
            x = torch.arange(1, width + 1, device=feature.device, dtype=dtype).expand(height, width)
            y, x = y[None], x[None]
        else:
            valid = (~padding_mask).to(dtype)
            y, x = valid.cumsum(1), valid.cumsum(2)
        y = (y + self.offset) / (y[:, -1:, :] + 1e-6)
        x = (x + self.offset) / (x[:, :, -1:] + 1e-6)
        encoded = sine_encoding(torch.stack((y, x), dim=-1), self.dim // 2, self.temperature)
        return encoded.permute(0, 3, 1, 2).expand(batch, -1, -1, -1)
