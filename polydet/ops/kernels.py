"""Triton kernels of multi-scale deformable attention, forward and backward.

One program handles ``BLOCK`` queries of one head of one image; the threads of a row hold its channels, so every
corner is one wide load. Coordinates, softmax and sums are in ``COMPUTE`` (float32, or float64 for float64 values)
whatever the inputs are. Softmax and sampling locations are computed here, twice rather than stored: the forward
saves nothing but its inputs.

``REFERENCE`` is 0 (``sampling`` holds normalised locations, ``attention`` weights), 2 or 4 (offsets and logits with
2-d or 4-d reference points).
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

_CONFIGS = [
    triton.Config({"BLOCK": 2**power}, num_warps=warps, num_stages=1) for warps in (1, 2, 4, 8) for power in range(1, 9)
]
_KEY = ["query_bucket", "HEADS", "CHANNELS", "LEVELS", "POINTS", "REFERENCE", "ORDERED"]
_VARYING = ["tokens", "queries", "query_bucket"]  # from image to image: no recompilation


def _fitting_configs(configs: list[triton.Config], named_args: dict, **kwargs: Any) -> list[triton.Config]:
    """Configurations in which a thread holds 16 bytes of one row, one wide load, and a few with twice that."""
    wide = 16 // named_args["value_ptr"].element_size()
    fitting = []
    for config in configs:
        share = config.kwargs["BLOCK"] * kwargs["CHANNELS"] / (32 * config.num_warps)
        if share == wide or (share == 2 * wide and config.num_warps in (1, 4)):
            fitting.append(config)
    return fitting


_PRUNE = {"early_config_prune": _fitting_configs}


@triton.jit
def _queries(order_ptr, queries, ORDERED: tl.constexpr, BLOCK: tl.constexpr):
    """Queries of this program and which of them exist."""
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = query < queries
    if ORDERED:
        query = tl.load(order_ptr + query, mask=mask, other=0)
    return query, mask


@triton.jit
def _softmax(
    attention_ptr,
    row,
    mask,
    SAMPLES: tl.constexpr,
    SAMPLES_PADDED: tl.constexpr,
    REFERENCE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Logits ``[BLOCK, SAMPLES_PADDED]``, their maximum, and one over the sum of exponentials."""
    column = tl.arange(0, SAMPLES_PADDED)
    inside = mask[:, None] & (column < SAMPLES)[None, :]
    if REFERENCE > 0:
        logits = tl.load(attention_ptr + row[:, None] * SAMPLES + column[None, :], mask=inside, other=float("-inf")).to(
            COMPUTE
        )
        peak = tl.where(mask, tl.max(logits, 1), 0.0)
        total = tl.where(mask, tl.sum(tl.exp(logits - peak[:, None]), 1), 1.0)
        inverse_total = 1.0 / total
    else:  # weights, nothing to do
        logits = tl.zeros(inside.shape, COMPUTE)
        peak = tl.zeros(mask.shape, COMPUTE)
        inverse_total = peak
    return logits, peak, inverse_total


@triton.jit
def _softmax_backward(
    grad_weight_ptr,
    grad_attention_ptr,
    logits,
    peak,
    inverse_total,
    row,
    mask,
    SAMPLES: tl.constexpr,
    SAMPLES_PADDED: tl.constexpr,
):
    """Gradients of the logits from those of the weights."""
    column = tl.arange(0, SAMPLES_PADDED)
    inside = mask[:, None] & (column < SAMPLES)[None, :]
    tile = row[:, None] * SAMPLES + column[None, :]
    grad_weights = tl.load(grad_weight_ptr + tile, mask=inside, other=0.0)
    weights = tl.exp(logits - peak[:, None]) * inverse_total[:, None]
    mean = tl.sum(weights * grad_weights, 1)
    tl.store(grad_attention_ptr + tile, weights * (grad_weights - mean[:, None]), mask=inside)


@triton.jit
def _offset_scales(extent_x, extent_y, size_x, size_y, POINTS: tl.constexpr, REFERENCE: tl.constexpr):
    """Pixels per unit of ``sampling`` along x and y."""
    x = tl.full(extent_x.shape, 1.0, extent_x.dtype)
    y = x
    if REFERENCE == 0:
        x = x * size_x
        y = y * size_y
    elif REFERENCE == 4:
        x = extent_x * size_x * (0.5 / POINTS)
        y = extent_y * size_y * (0.5 / POINTS)
    return x, y


@triton.jit
def _pixel(offset, size, centre, extent, POINTS: tl.constexpr, REFERENCE: tl.constexpr):
    """Pixel coordinate along one axis, clamped to just outside the map; NaN stays."""
    if REFERENCE == 0:
        pixel = offset * size - 0.5
    elif REFERENCE == 2:
        pixel = centre * size - 0.5 + offset
    else:
        pixel = centre * size - 0.5 + offset * (extent * size * (0.5 / POINTS))
    pixel = tl.where(pixel < -2.0, -2.0, pixel)
    return tl.where(pixel > size + 1.0, size + 1.0, pixel)


@triton.jit
def _neighbours(pixel, size):
    """Index of the left (upper) neighbour, distance to it, and whether it and the next one lie on the map."""
    floor = tl.floor(pixel)
    index = tl.where(floor == floor, floor, -2.0).to(tl.int32)  # NaN addresses nothing
    return index, pixel - floor, (index >= 0) & (index < size), (index >= -1) & (index < size - 1)


@triton.jit
def _level(shapes_ptr, starts_ptr, level, tokens, COMPUTE: tl.constexpr):
    """Height, width and first token of a level, and its sizes as numbers to compute with: NaN, and so the result,
    if the level does not fit the value tensor."""
    height = tl.load(shapes_ptr + 2 * level)
    width = tl.load(shapes_ptr + 2 * level + 1)
    start = tl.load(starts_ptr + level)
    fits = (start >= 0) & (height >= 0) & (width >= 0) & (start + height * width <= tokens)
    fits = fits & (start <= tokens) & (height <= tokens) & (width <= tokens)  # or the line above may wrap around
    size_y = tl.where(fits, height.to(COMPUTE), float("nan"))
    size_x = tl.where(fits, width.to(COMPUTE), float("nan"))
    return height.to(tl.int32), width.to(tl.int32), start.to(tl.int32), size_x, size_y


@triton.jit
def _reference(reference_ptr, point, mask, REFERENCE: tl.constexpr, COMPUTE: tl.constexpr):
    """Reference points ``(x, y, w, h)``; zeros where there are none."""
    x = tl.zeros(point.shape, COMPUTE)
    y = x
    w = x
    h = x
    if REFERENCE > 0:
        x = tl.load(reference_ptr + point * REFERENCE, mask=mask, other=0.0).to(COMPUTE)
        y = tl.load(reference_ptr + point * REFERENCE + 1, mask=mask, other=0.0).to(COMPUTE)
    if REFERENCE == 4:
        w = tl.load(reference_ptr + point * REFERENCE + 2, mask=mask, other=0.0).to(COMPUTE)
        h = tl.load(reference_ptr + point * REFERENCE + 3, mask=mask, other=0.0).to(COMPUTE)
    return x, y, w, h


@triton.jit
def _sample(
    sampling_ptr, attention_ptr, sample, mask, peak, inverse_total, SOFTMAX: tl.constexpr, COMPUTE: tl.constexpr
):
    """Offset (or location) and attention weight of one sample of each query."""
    x = tl.load(sampling_ptr + sample * 2, mask=mask, other=0.0).to(COMPUTE)
    y = tl.load(sampling_ptr + sample * 2 + 1, mask=mask, other=0.0).to(COMPUTE)
    weight = tl.load(attention_ptr + sample, mask=mask, other=0.0).to(COMPUTE)
    if SOFTMAX:
        weight = tl.exp(weight - peak) * inverse_total
    return x, y, weight


@triton.jit
def _corners(pixel_x, pixel_y, height, width, start, mask, STRIDE: tl.constexpr):
    """Element offsets of the upper and the lower left corner's rows, shares of right and lower neighbours, and the
    masks of the corners (y, x) = 00, 01, 10, 11."""
    x, right_share, left, right = _neighbours(pixel_x, width)
    y, lower_share, upper, lower = _neighbours(pixel_y, height)
    upper = upper & mask
    lower = lower & mask
    upper_row = (start + y * width + x) * STRIDE
    lower_row = upper_row + width * STRIDE
    return upper_row, lower_row, right_share, lower_share, upper & left, upper & right, lower & left, lower & right


@triton.jit
def _rows(pointer, row, channel, mask, COMPUTE: tl.constexpr):
    """Channels of one token per query, ``[BLOCK, CHANNELS]``; zeros off the map."""
    return tl.load(pointer + row[:, None] + channel[None, :], mask=mask[:, None], other=0.0).to(COMPUTE)


@triton.autotune(configs=_CONFIGS, key=_KEY, prune_configs_by=_PRUNE, cache_results=True)
@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    value_ptr,  # [B, S, H, D]
    shapes_ptr,  # [L, 2] int64
    starts_ptr,  # [L] int64
    reference_ptr,  # [B, Q, L, REFERENCE]
    sampling_ptr,  # [B, Q, H, L, P, 2]
    attention_ptr,  # [B, Q, H, L, P]
    order_ptr,  # [Q] int32, read if ORDERED
    output_ptr,  # [B, Q, H, D]
    tokens,
    queries,
    query_bucket,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES_PADDED: tl.constexpr,
    REFERENCE: tl.constexpr,
    ORDERED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weighted sum of the samples of ``BLOCK`` queries."""
    SAMPLES: tl.constexpr = LEVELS * POINTS
    STRIDE: tl.constexpr = HEADS * CHANNELS
    query, mask = _queries(order_ptr, queries, ORDERED, BLOCK)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    row = (image * queries + query) * HEADS + head
    channel = tl.arange(0, CHANNELS)
    value_ptr += image * tokens * STRIDE + head * CHANNELS
    _, peak, inverse_total = _softmax(attention_ptr, row, mask, SAMPLES, SAMPLES_PADDED, REFERENCE, COMPUTE)
    result = tl.zeros((BLOCK, CHANNELS), COMPUTE)
    for level in range(LEVELS):
        height, width, start, size_x, size_y = _level(shapes_ptr, starts_ptr, level, tokens, COMPUTE)
        point = (image * queries + query) * LEVELS + level
        centre_x, centre_y, extent_x, extent_y = _reference(reference_ptr, point, mask, REFERENCE, COMPUTE)
        for index in tl.static_range(POINTS):
            sample = row * SAMPLES + level * POINTS + index
            offset_x, offset_y, weight = _sample(
                sampling_ptr, attention_ptr, sample, mask, peak, inverse_total, REFERENCE > 0, COMPUTE
            )
            pixel_x = _pixel(offset_x, size_x, centre_x, extent_x, POINTS, REFERENCE)
            pixel_y = _pixel(offset_y, size_y, centre_y, extent_y, POINTS, REFERENCE)
            upper, lower, right_share, lower_share, m00, m01, m10, m11 = _corners(
                pixel_x, pixel_y, height, width, start, mask, STRIDE
            )
            right_weight = weight * right_share
            left_weight = weight - right_weight
            upper_share = 1.0 - lower_share
            result += (left_weight * upper_share)[:, None] * _rows(value_ptr, upper, channel, m00, COMPUTE)
            result += (right_weight * upper_share)[:, None] * _rows(value_ptr + STRIDE, upper, channel, m01, COMPUTE)
            result += (left_weight * lower_share)[:, None] * _rows(value_ptr, lower, channel, m10, COMPUTE)
            result += (right_weight * lower_share)[:, None] * _rows(value_ptr + STRIDE, lower, channel, m11, COMPUTE)
    tl.store(output_ptr + (row * CHANNELS)[:, None] + channel[None, :], result, mask=mask[:, None])


@triton.jit
def _add_rows(pointer, row, channel, mask, weight, grad, scale, FIXED_POINT: tl.constexpr):
    """Add ``weight * grad`` to rows of the value gradient; nobody waits for the result."""
    pointer = pointer + row[:, None] + channel[None, :]
    part = weight[:, None] * grad
    if FIXED_POINT:
        tl.atomic_add(pointer, (part * scale).to(tl.int64), mask=mask[:, None], sem="relaxed")
    else:
        tl.atomic_add(pointer, part, mask=mask[:, None], sem="relaxed")


@triton.jit
def _sample_backward(
    value_ptr,
    grad_value_ptr,
    grad,
    weight,
    pixel_x,
    pixel_y,
    height,
    width,
    start,
    channel,
    mask,
    scale,
    STRIDE: tl.constexpr,
    COMPUTE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
):
    """Scatter one sample's value gradient; return the gradients of its weight and pixel coordinates."""
    upper, lower, right_share, lower_share, m00, m01, m10, m11 = _corners(
        pixel_x, pixel_y, height, width, start, mask, STRIDE
    )
    left_share = 1.0 - right_share
    upper_share = 1.0 - lower_share
    d00 = tl.sum(_rows(value_ptr, upper, channel, m00, COMPUTE) * grad, 1)
    d01 = tl.sum(_rows(value_ptr + STRIDE, upper, channel, m01, COMPUTE) * grad, 1)
    d10 = tl.sum(_rows(value_ptr, lower, channel, m10, COMPUTE) * grad, 1)
    d11 = tl.sum(_rows(value_ptr + STRIDE, lower, channel, m11, COMPUTE) * grad, 1)
    left = weight * left_share
    right = weight * right_share
    _add_rows(grad_value_ptr, upper, channel, m00, left * upper_share, grad, scale, FIXED_POINT)
    _add_rows(grad_value_ptr + STRIDE, upper, channel, m01, right * upper_share, grad, scale, FIXED_POINT)
    _add_rows(grad_value_ptr, lower, channel, m10, left * lower_share, grad, scale, FIXED_POINT)
    _add_rows(grad_value_ptr + STRIDE, lower, channel, m11, right * lower_share, grad, scale, FIXED_POINT)
    upper_mean = left_share * d00 + right_share * d01
    lower_mean = left_share * d10 + right_share * d11
    grad_x = weight * (upper_share * (d01 - d00) + lower_share * (d11 - d10))
    return upper_share * upper_mean + lower_share * lower_mean, grad_x, weight * (lower_mean - upper_mean)


@triton.autotune(
    configs=_CONFIGS,
    key=[*_KEY, "NEED_REFERENCE"],
    prune_configs_by=_PRUNE,
    reset_to_zero=["grad_value_ptr"],
    cache_results=True,
)
@triton.jit(do_not_specialize=_VARYING)
def backward_kernel(
    grad_ptr,  # [B, Q, H, D]
    value_ptr,
    shapes_ptr,
    starts_ptr,
    reference_ptr,
    sampling_ptr,
    attention_ptr,
    order_ptr,
    scale_ptr,  # [1], read if FIXED_POINT
    grad_value_ptr,  # [B, S, H, D] zeros, COMPUTE or int64
    grad_reference_ptr,  # [B, Q, H, L, REFERENCE] COMPUTE, one share per head, written if NEED_REFERENCE
    grad_sampling_ptr,  # like sampling
    grad_weight_ptr,  # [B, Q, H, L, P] COMPUTE, scratch if there is a softmax; may be grad_attention
    grad_attention_ptr,  # like attention, written if there is a softmax
    tokens,
    queries,
    query_bucket,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES_PADDED: tl.constexpr,
    REFERENCE: tl.constexpr,
    ORDERED: tl.constexpr,
    COMPUTE: tl.constexpr,
    NEED_REFERENCE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All gradients of ``BLOCK`` queries; that of the values is added up with atomics."""
    SAMPLES: tl.constexpr = LEVELS * POINTS
    STRIDE: tl.constexpr = HEADS * CHANNELS
    query, mask = _queries(order_ptr, queries, ORDERED, BLOCK)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    row = (image * queries + query) * HEADS + head
    channel = tl.arange(0, CHANNELS)
    value_ptr += image * tokens * STRIDE + head * CHANNELS
    grad_value_ptr += image * tokens * STRIDE + head * CHANNELS
    scale = 1.0
    if FIXED_POINT:
        scale = tl.load(scale_ptr).to(COMPUTE)
    logits, peak, inverse_total = _softmax(attention_ptr, row, mask, SAMPLES, SAMPLES_PADDED, REFERENCE, COMPUTE)
    grad = _rows(grad_ptr, row * CHANNELS, channel, mask, COMPUTE)
    for level in range(LEVELS):
        height, width, start, size_x, size_y = _level(shapes_ptr, starts_ptr, level, tokens, COMPUTE)
        point = (image * queries + query) * LEVELS + level
        centre_x, centre_y, extent_x, extent_y = _reference(reference_ptr, point, mask, REFERENCE, COMPUTE)
        scale_x, scale_y = _offset_scales(extent_x, extent_y, size_x, size_y, POINTS, REFERENCE)
        sum_x = tl.zeros((BLOCK,), COMPUTE)
        sum_y = sum_x
        moment_x = sum_x
        moment_y = sum_x
        for index in tl.static_range(POINTS):
            sample = row * SAMPLES + level * POINTS + index
            offset_x, offset_y, weight = _sample(
                sampling_ptr, attention_ptr, sample, mask, peak, inverse_total, REFERENCE > 0, COMPUTE
            )
            pixel_x = _pixel(offset_x, size_x, centre_x, extent_x, POINTS, REFERENCE)
            pixel_y = _pixel(offset_y, size_y, centre_y, extent_y, POINTS, REFERENCE)
            grad_weight, grad_x, grad_y = _sample_backward(
                value_ptr, grad_value_ptr, grad, weight, pixel_x, pixel_y, height, width, start, channel, mask,
                scale, STRIDE, COMPUTE, FIXED_POINT
            )  # fmt: skip
            tl.store(grad_weight_ptr + sample, grad_weight, mask=mask)
            tl.store(grad_sampling_ptr + sample * 2, grad_x * scale_x, mask=mask)
            tl.store(grad_sampling_ptr + sample * 2 + 1, grad_y * scale_y, mask=mask)
            sum_x += grad_x
            sum_y += grad_y
            moment_x += grad_x * offset_x
            moment_y += grad_y * offset_y
        if NEED_REFERENCE:
            pointer = grad_reference_ptr + (row * LEVELS + level) * REFERENCE
            tl.store(pointer, sum_x * size_x, mask=mask)
            tl.store(pointer + 1, sum_y * size_y, mask=mask)
            if REFERENCE == 4:
                tl.store(pointer + 2, moment_x * size_x * (0.5 / POINTS), mask=mask)
                tl.store(pointer + 3, moment_y * size_y * (0.5 / POINTS), mask=mask)
    if REFERENCE > 0:
        tl.debug_barrier()  # the weights' gradients above were written by other threads of this program
        _softmax_backward(
            grad_weight_ptr, grad_attention_ptr, logits, peak, inverse_total, row, mask, SAMPLES, SAMPLES_PADDED
        )
