"""The two entry points of multi-scale deformable attention."""

from __future__ import annotations

from torch import Tensor

from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from .shapes import Shapes


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3): a weighted sum of bilinear samples per head.

    Args:
        value: ``[B, S, H, D]``, the levels' maps flattened row by row, one after the other.
        spatial_shapes: (height, width) of each level: ``[L, 2]`` integer tensor, or pairs of numbers, which
            saves a GPU from waiting and lets sizes be checked.
        level_start_index: ``[L]`` first token of each level; None: the levels lie without gaps.
        sampling_locations: ``[B, Q, H, L, P, 2]`` (x, y) normalised to 0..1 (``align_corners=False``); beyond the
            map lies zero. Infinite is beyond the map; NaN gives NaN in that query and head, and reads nothing.
        attention_weights: ``[B, Q, H, L, P]``.
    Returns:
        ``[B, Q, H * D]``, dtype of ``value``.
    """
    return ms_deform_attn_reference(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """:func:`ms_deform_attn` with softmax and sampling locations computed on the way.

    Args:
        reference_points: ``[B, Q, L, 2]`` (x, y) or ``[B, Q, L, 4]`` (cx, cy, w, h), normalised to 0..1.
        sampling_offsets: ``[B, Q, H, L, P, 2]``: with 2-d reference points in pixels of the level, with 4-d
            ones in units of ``(w, h) / (2 P)``.
        attention_logits: ``[B, Q, H, L, P]``; the softmax goes over levels and points together.
    Returns:
        ``[B, Q, H * D]``, dtype of ``value``.
    """
    return ms_deform_attn_fused_reference(
        value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits
    )
