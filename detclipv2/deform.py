"""Modulated deformable 3x3 convolution: torchvision's kernel, and on the CPU an equal one that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d


def deformable_conv(feature: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Deformable ConvNets v2, kernel 3, stride 1, padding 1, one offset group.

    Args:
        feature: `[B, C, H, W]`.
        offsets: `[B, 18, H, W]` pixels, (y, x) of each tap in row order.
        mask: `[B, 9, H, W]`.
        weight: `[O, C, 3, 3]`; bias: `[O]` or None.

    Returns:
        `[B, O, H, W]`.
    """
    if feature.device.type != "cpu":
        return deform_conv2d(feature, offsets, weight, bias, padding=1, mask=mask)
    return sampled_conv(feature, offsets, mask, weight, bias)


def sampled_conv(feature: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same by `grid_sample` and a matrix product: torchvision's backward on the CPU is one scalar loop."""
    batch, channels, height, width = feature.shape
    tap = torch.arange(3, dtype=feature.dtype, device=feature.device) - 1
    rows = torch.arange(height, dtype=feature.dtype, device=feature.device)[:, None]
    columns = torch.arange(width, dtype=feature.dtype, device=feature.device)
    offsets = offsets.unflatten(1, (9, 2))
    y = offsets[:, :, 0] + tap.repeat_interleave(3)[:, None, None] + rows
    x = offsets[:, :, 1] + tap.repeat(3)[:, None, None] + columns
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(feature, grid.flatten(1, 2), padding_mode="zeros", align_corners=False)
    sampled = sampled.unflatten(2, (9, height)) * mask[:, None]
    out = weight.flatten(1) @ sampled.reshape(batch, channels * 9, height * width)
    return out.unflatten(2, (height, width)) + (0 if bias is None else bias[:, None, None])
