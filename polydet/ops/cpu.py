"""Multi-scale deformable attention on the CPU, out of gather kernels that PyTorch already has.

Every sample is four weighted rows of a table of values, so the attention of one query is an ``embedding_bag``
over ``4 L P`` rows. The table has a border of zeros around each level, which replaces all tests for what lies
outside. The gradient of the weights is a sampled matrix product; that of the values is again an
``embedding_bag``, over the samples sorted by row, so it is deterministic and nothing is scattered.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .coordinates import Coordinates

_BORDER = 2  # pixels of zeros around a level: coordinates are clamped to [-2, size], their right neighbour is size + 1
_GROUP_SAMPLES = 1 << 17  # samples handled at once: their temporaries should stay in the cache


@dataclass(frozen=True)
class _Table:
    """Where each level lies in the bordered table; constants per sample (level-major, ``[L * P]``)."""

    shapes: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]  # of the bordered levels
    rows: int
    sizes: Tensor  # [2, 1, 1, L*P] width, height
    pitch: Tensor  # [L*P] int32
    origin: Tensor  # [L*P] int32, row of pixel (0, 0)
    corners: Tensor  # [4, L*P] int32, row distance of the neighbours (y, x) = 00, 01, 10, 11


@lru_cache(maxsize=256)
def _table(shapes: tuple[tuple[int, int], ...], points: int, dtype: torch.dtype) -> _Table:
    pitches = [width + 2 * _BORDER for _, width in shapes]
    starts = [0]
    for (height, _), pitch in zip(shapes, pitches):
        starts.append(starts[-1] + (height + 2 * _BORDER) * pitch)
    origins = [start + _BORDER * pitch + _BORDER for start, pitch in zip(starts, pitches)]

    def per_sample(rows: list, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(rows, dtype=dtype).repeat_interleave(points, 0).t().contiguous()

    return _Table(
        shapes,
        tuple(starts[:-1]),
        starts[-1],
        per_sample([(width, height) for height, width in shapes], dtype)[:, None, None],
        per_sample(pitches),
        per_sample(origins),
        per_sample([(0, 1, pitch, pitch + 1) for pitch in pitches]),
    )


def _groups(batch: int, heads: int, samples_per_head: int) -> Iterator[tuple[int, slice]]:
    if not samples_per_head:
        return
    step = max(1, min(heads, _GROUP_SAMPLES // samples_per_head))
    for image in range(batch):
        for head in range(0, heads, step):
            yield image, slice(head, min(head + step, heads))


class _Group:
    """Samples of some heads of one image: rows of the table, fractions, and the table itself."""

    def __init__(self, value: Tensor, level_starts: list[int], table: _Table, pixels: Tensor) -> None:
        """``value [S, G, D]``, ``pixels [2, G, Q, L * P]`` (x, y)."""
        heads, channels = value.shape[1:]
        self.table = table
        pixels = torch.minimum(pixels.clamp_(min=-float(_BORDER)), table.sizes)
        corner = pixels.floor()
        self.fraction = pixels.sub_(corner)
        # NaN must not become an address: send it to a corner of the border, its weight stays NaN
        x, y = corner.nan_to_num_(nan=-float(_BORDER)).to(torch.int32)
        self.rows = torch.addcmul(x, y, table.pitch).add_(table.origin)  # [G, Q, L*P], row of corner 00 in its head
        head_start = torch.arange(0, heads * table.rows, table.rows, dtype=torch.int32)
        self.indices = self.rows[:, :, None] + (table.corners + head_start[:, None, None, None])
        self.values = value.new_zeros(heads, table.rows, channels, dtype=pixels.dtype)
        for (height, width), start, source in zip(table.shapes, table.starts, level_starts):
            level = value[source : source + height * width].view(height, width, heads, channels)
            _inner(self.values, start, height, width).copy_(level.permute(2, 0, 1, 3))

    def corner_weights(self, attention: Tensor) -> Tensor:
        """Bilinear times attention weights ``[G, Q, 2, 2, L * P]``, corners (y, x)."""
        shape = attention.shape
        along_x = attention.new_empty(*shape[:2], 2, shape[2])
        torch.mul(attention, self.fraction[0], out=along_x[:, :, 1])
        torch.sub(attention, along_x[:, :, 1], out=along_x[:, :, 0])
        weights = attention.new_empty(*shape[:2], 2, 2, shape[2])
        torch.mul(along_x, self.fraction[1].unsqueeze(2), out=weights[:, :, 1])
        torch.sub(along_x, weights[:, :, 1], out=weights[:, :, 0])
        return weights

    def attend(self, attention: Tensor) -> Tensor:
        """Output ``[G, Q, D]`` for ``attention [G, Q, L * P]``."""
        heads, queries, samples = attention.shape
        weights = self.corner_weights(attention).view(-1, 4 * samples)
        rows = self.values.view(-1, self.values.shape[-1])
        bags = self.indices.view(-1, 4 * samples)
        return F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights).view(heads, queries, -1)

    def corner_products(self, grad: Tensor) -> Tensor:
        """Scalar products of ``grad [G, Q, D]`` with every corner's row: ``[G, Q, 2, 2, L * P]``."""
        heads, queries, channels = grad.shape
        samples = self.rows.shape[-1]
        bags = heads * queries
        _silence_sparse_warning()
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, bags * 4 * samples + 1, 4 * samples, dtype=torch.int32),
            self.indices.view(-1),
            grad.new_zeros(bags * 4 * samples),  # beta = 0 does not hide NaN
            size=(bags, heads * self.table.rows),
            check_invariants=False,
        )
        rows = self.values.view(-1, channels)
        products = torch.sparse.sampled_addmm(pattern, grad.reshape(bags, channels), rows.t(), beta=0)
        return products.values().view(heads, queries, 2, 2, samples)

    def value_gradient(self, attention: Tensor, grad: Tensor, level_starts: list[int], out: Tensor) -> None:
        """Add up ``attention [G, Q, L * P]`` times ``grad [G, Q, D]`` per row; write to ``out [S, G, D]``."""
        heads, queries, samples = attention.shape
        channels = grad.shape[-1]
        narrow = self.table.rows <= torch.iinfo(torch.int16).max  # sorts several times faster
        keys = self.rows.view(heads, -1).to(torch.int16 if narrow else torch.int32)
        keys, order = torch.sort(keys, dim=-1, stable=True)
        ends = torch.arange(self.table.rows, dtype=keys.dtype).expand(heads, -1).contiguous()
        first = torch.searchsorted(keys, ends)
        first += torch.arange(0, heads * queries * samples, queries * samples)[:, None]
        order += torch.arange(0, heads * queries * samples, queries * samples)[:, None]
        order = order.view(-1)
        weights = self.corner_weights(attention).permute(2, 3, 0, 1, 4).reshape(4, -1)
        query = order.div(samples, rounding_mode="floor")
        rows = grad.reshape(-1, channels)
        sums = [
            F.embedding_bag(
                query, rows, first.view(-1), mode="sum", per_sample_weights=corner.index_select(0, order)
            ).view(heads, -1, channels)
            for corner in weights
        ]
        for (height, width), start, target in zip(self.table.shapes, self.table.starts, level_starts):
            level = out[target : target + height * width].view(height, width, heads, channels).permute(2, 0, 1, 3)
            level.copy_(_inner(sums[0], start, height, width))
            for corner, (dy, dx) in ((1, (0, 1)), (2, (1, 0)), (3, (1, 1))):
                level.add_(_inner(sums[corner], start, height, width, dy, dx))


def _inner(rows: Tensor, start: int, height: int, width: int, dy: int = 0, dx: int = 0) -> Tensor:
    """The level's own pixels ``[G, h, w, D]`` in a bordered table, or those ``(dy, dx)`` before them."""
    pitch = width + 2 * _BORDER
    level = rows[:, start : start + (height + 2 * _BORDER) * pitch]
    level = level.view(rows.shape[0], height + 2 * _BORDER, pitch, rows.shape[-1])
    top, left = _BORDER - dy, _BORDER - dx
    return level[:, top : top + height, left : left + width]


@cache
def _silence_sparse_warning() -> None:
    """PyTorch says once per process that CSR tensors are beta; it means nothing to a user of attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1))


def _by_head(tensor: Tensor, image: int, heads: slice) -> Tensor:
    """``[B, Q, H, L, P]`` -> ``[G, Q, L * P]`` of one group, contiguous."""
    return tensor[image, :, heads].flatten(2).transpose(0, 1).contiguous()


def forward(value: Tensor, level_starts: list[int], coordinates: Coordinates, attention: Tensor) -> Tensor:
    """Output ``[B, Q, H * D]`` for ``value [B, S, H, D]`` and normalised ``attention [B, Q, H, L, P]``."""
    batch, _, heads, channels = value.shape
    queries, points = attention.shape[1], attention.shape[4]
    output = attention.new_empty(batch, queries, heads, channels)
    table = _table(coordinates.shapes, points, attention.dtype)
    for image, group in _groups(batch, heads, queries * table.pitch.numel()):
        samples = _Group(value[image, :, group], level_starts, table, coordinates.pixels(image, group))
        output[image, :, group] = samples.attend(_by_head(attention, image, group)).transpose(0, 1)
    return output.view(batch, queries, heads * channels)


def backward(
    grad: Tensor, value: Tensor, level_starts: list[int], coordinates: Coordinates, attention: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` in float: value, pixel coordinates ``[B, Q, H, L, P, 2]``, attention."""
    batch, _, heads, channels = value.shape
    queries, levels, points = attention.shape[1], *attention.shape[3:]
    grad = grad.view(batch, queries, heads, channels)
    table = _table(coordinates.shapes, points, attention.dtype)
    grad_value = torch.zeros_like(value, dtype=attention.dtype)
    grad_pixels = attention.new_empty(batch, queries, heads, levels * points, 2)
    grad_attention = attention.new_empty(batch, queries, heads, levels * points)
    for image, group in _groups(batch, heads, queries * table.pitch.numel()):
        samples = _Group(value[image, :, group], level_starts, table, coordinates.pixels(image, group))
        weights = _by_head(attention, image, group)
        grad_output = grad[image, :, group].transpose(0, 1).contiguous()
        fraction_x, fraction_y = samples.fraction
        products = samples.corner_products(grad_output)
        along_x = torch.lerp(products[:, :, :, 0], products[:, :, :, 1], fraction_x.unsqueeze(2))
        slope_x = products[:, :, :, 1] - products[:, :, :, 0]
        slope_x = torch.lerp(slope_x[:, :, 0], slope_x[:, :, 1], fraction_y)
        slope_y = along_x[:, :, 1] - along_x[:, :, 0]
        grad_attention[image, :, group] = torch.lerp(along_x[:, :, 0], along_x[:, :, 1], fraction_y).transpose(0, 1)
        grad_pixels[image, :, group, :, 0] = slope_x.mul_(weights).transpose(0, 1)
        grad_pixels[image, :, group, :, 1] = slope_y.mul_(weights).transpose(0, 1)
        samples.value_gradient(weights, grad_output, level_starts, grad_value[image, :, group])
    return grad_value, grad_pixels.view(*attention.shape, 2), grad_attention.view(attention.shape)
