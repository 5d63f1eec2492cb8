"""The two entry points of multi-scale deformable attention."""

from __future__ import annotations

from torch import Tensor

from .dispatch import backend, chosen
from .library import forward_op
from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from .shapes import Shapes, shape_tensors


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    query_order: Tensor | None = None,
    deterministic: bool | None = None,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3): a weighted sum of bilinear samples per head.

    Args:
        value: ``[B, S, H, D]``, the levels' maps flattened row by row, one after the other.
        spatial_shapes: (height, width) of each level: ``[L, 2]`` integer tensor, or pairs of numbers, which
            lets sizes be checked on any device.
        level_start_index: ``[L]`` first token of each level; None: the levels lie without gaps.
        sampling_locations: ``[B, Q, H, L, P, 2]`` (x, y) normalised to 0..1 (``align_corners=False``); beyond the
            map lies zero. Infinite is beyond the map; NaN gives NaN in that query and head, and reads nothing.
        attention_weights: ``[B, Q, H, L, P]``.
        query_order: ``[Q]`` int32 permutation in which a GPU works through the queries, see
            :func:`polydet.ops.tiled_query_order`; the result does not depend on it.
        deterministic: gradients that repeat to the bit on a GPU; None: as
            ``torch.use_deterministic_algorithms`` says. The CPU's always do.
    Returns:
        ``[B, Q, H * D]``, dtype of ``value``; sums are in float32 (float64 for float64).
    Raises:
        ValueError: shapes that do not belong together. Sizes in a CUDA tensor are not read, as that would make
            the GPU wait: a level that does not fit ``value`` gives NaN there.
        RuntimeError: if a Triton kernel fails; nothing else is tried.
    """
    _check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if backend(value.device) == "reference":
        return ms_deform_attn_reference(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    sizes, starts = shape_tensors(spatial_shapes, level_start_index, value.device)
    return forward_op(
        value, sizes, starts, None, sampling_locations, attention_weights, query_order, deterministic, chosen()
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    query_order: Tensor | None = None,
    deterministic: bool | None = None,
) -> Tensor:
    """:func:`ms_deform_attn` with softmax and sampling locations computed on the way.

    Args:
        reference_points: ``[B, Q, L, 2]`` (x, y) or ``[B, Q, L, 4]`` (cx, cy, w, h), normalised to 0..1; their
            last dimension says what the offsets mean. Keep them in float32 under autocast.
        sampling_offsets: ``[B, Q, H, L, P, 2]``: with 2-d reference points in pixels of the level, with 4-d
            ones in units of ``(w, h) / (2 P)``.
        attention_logits: ``[B, Q, H, L, P]``; the softmax goes over levels and points together.
    Returns:
        ``[B, Q, H * D]``, dtype of ``value``.

    The other arguments and what is raised are those of :func:`ms_deform_attn`.
    """
    _check(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits)
    batch, queries, _, levels = attention_logits.shape[:4]
    expected = [(batch, queries, levels, size) for size in (2, 4)]
    if reference_points.shape not in expected:
        raise ValueError(f"reference_points {tuple(reference_points.shape)} should be {expected[0]} or {expected[1]}")
    if reference_points.device != value.device:
        raise ValueError(f"reference_points are on {reference_points.device}, value is on {value.device}")
    if backend(value.device) == "reference":
        return ms_deform_attn_fused_reference(
            value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits
        )
    sizes, starts = shape_tensors(spatial_shapes, level_start_index, value.device)
    return forward_op(
        value, sizes, starts, reference_points, sampling_offsets, attention_logits, query_order, deterministic,
        chosen(),
    )  # fmt: skip


def _check(
    value: Tensor, spatial_shapes: Shapes, level_start_index: Tensor | None, sampling: Tensor, attention: Tensor
) -> None:
    if value.dim() != 4 or attention.dim() != 5:
        raise ValueError(
            f"value {tuple(value.shape)} should be [B, S, H, D], attention {tuple(attention.shape)} [B, Q, H, L, P]"
        )
    levels = spatial_shapes.shape[0] if isinstance(spatial_shapes, Tensor) else len(spatial_shapes)
    batch, tokens, heads, _ = value.shape
    queries, points = attention.shape[1], attention.shape[4]
    if attention.shape != (batch, queries, heads, levels, points) or sampling.shape != (*attention.shape, 2):
        raise ValueError(
            f"value {tuple(value.shape)} with {levels} levels does not go with sampling {tuple(sampling.shape)} "
            f"and attention {tuple(attention.shape)}: [B, S, H, D], [B, Q, H, L, P, 2] and [B, Q, H, L, P] expected"
        )
    if not (value.is_floating_point() and sampling.is_floating_point() and attention.is_floating_point()):
        raise ValueError(f"floating point expected, not {value.dtype}, {sampling.dtype}, {attention.dtype}")
    if not value.device == sampling.device == attention.device:
        raise ValueError(f"one device expected, not {value.device}, {sampling.device}, {attention.device}")
    if level_start_index is None and not isinstance(spatial_shapes, Tensor):
        total = sum(height * width for height, width in spatial_shapes)
        if total != tokens:
            raise ValueError(f"spatial_shapes {list(spatial_shapes)} make {total} tokens, value has {tokens}")
