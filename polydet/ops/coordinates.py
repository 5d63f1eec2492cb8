"""Pixel coordinates of the samples and the chain rule back to what they were made from."""

from __future__ import annotations

import torch
from torch import Tensor


class Coordinates:
    """``pixel = shift + sampling * scale`` per level, pixel centres at integers.

    ``sampling [B, Q, H, L, P, 2]`` holds normalised locations, or raw offsets when ``reference_points
    [B, Q, L, 2 or 4]`` are given (Deformable DETR, app. A.4).
    """

    def __init__(
        self, shapes: list[tuple[int, int]], reference_points: Tensor | None, sampling: Tensor, dtype: torch.dtype
    ) -> None:
        self.shapes = tuple(shapes)
        self.reference_points = reference_points
        self.sampling = sampling
        self.dtype = dtype
        self.sizes = torch.tensor([(width, height) for height, width in shapes], dtype=dtype)  # [L, 2]
        if reference_points is None:
            self.shift = torch.tensor(-0.5, dtype=dtype)
            self.scale = self.sizes[:, None]
            return
        points = reference_points.to(dtype)[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
        self.shift = points[..., :2] * self.sizes[:, None] - 0.5
        self.scale = torch.ones((), dtype=dtype)
        if points.shape[-1] == 4:
            self.scale = points[..., 2:] * (self.sizes[:, None] * (0.5 / sampling.shape[4]))

    def pixels(self, image: int, heads: slice) -> Tensor:
        """``[2, G, Q, L * P]`` (x, y) of some heads of one image."""
        sampling = self.sampling[image, :, heads]
        queries, group, levels, points, _ = sampling.shape
        out = sampling.new_empty(2, group, queries, levels, points, dtype=self.dtype)
        shift = self.shift[image] if self.shift.dim() == 6 else self.shift
        scale = self.scale[image] if self.scale.dim() == 6 else self.scale
        torch.addcmul(shift, sampling.to(self.dtype), scale, out=out.permute(2, 1, 3, 4, 0))
        return out.view(2, group, queries, levels * points)

    def backward(self, grad_pixels: Tensor, need_reference: bool) -> tuple[Tensor | None, Tensor]:
        """Gradients of reference points and sampling from that of the pixels ``[B, Q, H, L, P, 2]``."""
        grad_sampling = grad_pixels * self.scale
        if self.reference_points is None or not need_reference:
            return None, grad_sampling
        parts = [grad_pixels.sum((2, 4)) * self.sizes]
        if self.reference_points.shape[-1] == 4:
            moment = (grad_pixels * self.sampling).sum((2, 4))
            parts.append(moment * (self.sizes * (0.5 / self.sampling.shape[4])))
        return torch.cat(parts, -1), grad_sampling
