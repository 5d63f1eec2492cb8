"""Multi-scale deformable attention in plain PyTorch: the definition every other path is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from .shapes import Shapes, level_starts, shapes_to_list


def sampling_locations(reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Shapes) -> Tensor:
    """Where each head looks, from reference points and raw offsets (Deformable DETR, sec. 4.1 and app. A.4).

    Args:
        reference_points: ``[B, Q, L, 2]`` (x, y) or ``[B, Q, L, 4]`` (cx, cy, w, h), normalised to 0..1.
        sampling_offsets: ``[B, Q, H, L, P, 2]``. With 2-d reference points in pixels of the level,
            with 4-d ones in units of ``(w, h) / (2 P)``.
        spatial_shapes: ``[L, 2]`` tensor or pairs of (height, width).
    Returns:
        ``[B, Q, H, L, P, 2]`` normalised (x, y), at least float32.
    """
    dtype = torch.promote_types(reference_points.dtype, torch.float32)
    points = reference_points.to(dtype)[:, :, None, :, None]
    offsets = sampling_offsets.to(dtype)
    if reference_points.shape[-1] == 2:
        sizes = torch.as_tensor(spatial_shapes, device=points.device).flip(-1).to(dtype)  # (w, h)
        return points + offsets / sizes[:, None]
    return points[..., :2] + offsets * (points[..., 2:] * (0.5 / sampling_offsets.shape[4]))


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Softmax, sampling locations and :func:`ms_deform_attn_reference`; arguments of
    :func:`polydet.ops.ms_deform_attn_fused`."""
    locations = sampling_locations(reference_points, sampling_offsets, spatial_shapes)
    weights = attention_weights(attention_logits)
    return ms_deform_attn_reference(value, spatial_shapes, level_start_index, locations, weights)


def attention_weights(attention_logits: Tensor) -> Tensor:
    """Softmax of ``[B, Q, H, L, P]`` over levels and points together, at least float32."""
    dtype = torch.promote_types(attention_logits.dtype, torch.float32)
    return attention_logits.flatten(3).softmax(-1, dtype=dtype).view(attention_logits.shape)


def _sample_level(value: Tensor, height: int, width: int, locations: Tensor) -> Tensor:
    """Bilinear samples ``[B, H, Q, P, D]`` of one level ``value [B, H, h*w, D]`` at ``locations [B, H, Q, P, 2]``.

    Pixel centres lie at half integers (``align_corners=False``); what is outside the map is zero.
    """
    size = locations.new_tensor((width, height))
    # the clamp keeps the cast to int defined at infinity; beyond one pixel outside all is zero anyway
    xy = (locations * size - 0.5).clamp(min=locations.new_tensor((-2.0, -2.0)), max=size + 1.0)
    corner = xy.detach().floor()
    fraction = xy - corner
    result = value.new_zeros(())
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = (corner[..., 0] + dx).nan_to_num().long(), (corner[..., 1] + dy).nan_to_num().long()
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & ~fraction.isnan().any(-1)
            index = (y * width + x) * inside  # where outside, any row will do: it is replaced by zero
            rows = value.gather(2, index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, value.shape[-1]))
            rows = rows.view(*index.shape, value.shape[-1]).masked_fill(~inside.unsqueeze(-1), 0)
            weight_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
            weight_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
            result = result + rows * (weight_x * weight_y).unsqueeze(-1)
    return result


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3), readable, twice differentiable, any device or dtype.

    Arguments, result and treatment of non-finite locations as :func:`polydet.ops.ms_deform_attn`.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    dtype = torch.promote_types(value.dtype, torch.float32)
    shapes = shapes_to_list(spatial_shapes)
    starts = level_starts(shapes) if level_start_index is None else level_start_index.tolist()
    output = value.new_zeros((batch, heads, queries, channels), dtype=dtype)
    for level, ((height, width), start) in enumerate(zip(shapes, starts)):
        if not height * width:
            continue
        level_value = value[:, start : start + height * width].to(dtype).transpose(1, 2)
        locations = sampling_locations[:, :, :, level].to(dtype).transpose(1, 2)
        weights = attention_weights[:, :, :, level].to(dtype).transpose(1, 2)
        output = output + (_sample_level(level_value, height, width, locations) * weights.unsqueeze(-1)).sum(3)
    return output.transpose(1, 2).reshape(batch, queries, heads * channels).to(value.dtype)
