"""Level sizes, given as a tensor or as plain numbers, without making the GPU wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Shapes = Tensor | Sequence[Sequence[int]]

_CACHE_SIZE = 1024  # multi-scale training meets a few hundred image sizes
_cache: OrderedDict[tuple, Any] = OrderedDict()


def shapes_to_list(spatial_shapes: Shapes) -> list[tuple[int, int]]:
    """``[L, 2]`` tensor or pairs to a list of (height, width). Waits for the GPU when given a CUDA tensor."""
    pairs = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return [(height, width) for height, width in pairs]


def level_starts(shapes: Sequence[Sequence[int]]) -> list[int]:
    """Index of the first token of each level."""
    starts = [0]
    for height, width in shapes[:-1]:
        starts.append(starts[-1] + height * width)
    return starts


def _to_tensors(shapes: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([list(pair) for pair in shapes], dtype=torch.int64, device=device)
    return sizes, torch.tensor(level_starts(shapes), dtype=torch.int64, device=device)


def shape_tensors(
    spatial_shapes: Shapes, level_start_index: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """``([L, 2], [L])`` int64 tensors of level sizes and starts on ``device``.

    Plain numbers are copied to a device once per set of sizes; tensors on the device are used as they are.
    """
    if isinstance(spatial_shapes, Tensor):
        sizes = spatial_shapes.to(device=device, dtype=torch.int64)
        if level_start_index is None:
            areas = sizes.prod(1)
            level_start_index = areas.cumsum(0) - areas
        return sizes, level_start_index.to(device=device, dtype=torch.int64)
    if level_start_index is not None:
        return _cached_tensors(spatial_shapes, device)[0], level_start_index.to(device=device, dtype=torch.int64)
    return _cached_tensors(spatial_shapes, device)


def _cached_tensors(shapes: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    return _cached("levels", _to_tensors, shapes, device)


def cached_query_order(shapes: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """:func:`tiled_query_order`, computed and copied to the device once per set of sizes."""
    return _cached("order", tiled_query_order, shapes, device)


def _cached(name: str, make: Callable, shapes: Sequence[Sequence[int]], device: torch.device) -> Any:
    if torch.compiler.is_compiling():
        return make(shapes, device)
    key = (name, tuple((int(height), int(width)) for height, width in shapes), device)
    if key in _cache:
        _cache.move_to_end(key)
        return _cache[key]
    with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward
        made = make(shapes, device)
    if type(made[0]) is Tensor:  # a fake tensor of a tracer must not outlive it
        _cache[key] = made
        if len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return made


def tiled_query_order(spatial_shapes: Shapes, device: torch.device | str | None = None, tile: int = 8) -> Tensor:
    """Order of an encoder's queries by square tiles, level after level, so that neighbours share cached rows.

    Args:
        spatial_shapes: (height, width) of each level; a CUDA tensor makes the GPU wait.
        tile: side of a tile in pixels.
    Returns:
        ``[S]`` int32 permutation for ``query_order`` of :func:`polydet.ops.ms_deform_attn`.
    """
    orders = []
    start = 0
    for height, width in shapes_to_list(spatial_shapes):
        y = torch.arange(height)[:, None]
        x = torch.arange(width)[None, :]
        tile_index = (y // tile) * (-(-width // tile)) + x // tile
        within = (y % tile) * tile + x % tile
        orders.append((tile_index * tile**2 + within).flatten().argsort() + start)
        start += height * width
    return torch.cat(orders).to(device=device, dtype=torch.int32)
