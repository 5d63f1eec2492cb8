"""One batch over all processes: strings and rows, the rows with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Equal shapes of all processes, stacked; the gradient is summed over processes (any backend)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, in the order of the ranks, with gradient.

    A loss that every process computes from the result and that DistributedDataParallel averages has the gradient it
    would have in one process.

    Args:
        rows: `[n_r, ...]`; n may differ between processes.

    Returns:
        `[sum n_r, ...]` and the index of this process's first row.
    """
    if comm.get_world_size() == 1:
        return rows, 0
    counts = gather_objects(len(rows))
    longest = max(counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = _AllGather.apply(padded)
    gathered = torch.cat([part[:count] for part, count in zip(parts, counts)])
    return gathered, sum(counts[: comm.get_rank()])


def gather_objects(value: Any) -> list[Any]:
    """Any picklable value of every process, in the order of the ranks."""
    if comm.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * comm.get_world_size()
    dist.all_gather_object(values, value)
    return values


def share_of(items: Sequence[Any], pad: bool = True) -> Sequence[Any]:
    """This process's slice of items that all processes hold: equal lengths, the last ones repeated to fill up.

    Args:
        items: the same on every process.
        pad: fill up, so that every process has work (and gradients) in every step.
    """
    world, rank = comm.get_world_size(), comm.get_rank()
    size = -(-len(items) // world)
    part = list(items[rank * size : (rank + 1) * size])
    if pad and items:
        part += [items[-1]] * (size - len(part))
    return part
