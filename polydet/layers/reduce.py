"""Loss normalisers agreed between processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def mean_over_processes(value: Tensor | float, minimum: float = 1.0, device: torch.device | None = None) -> Tensor:
    """Average a scalar over all processes, so that the sum of losses does not depend on how images are split.

    Args:
        value: this process's count of positives, or sum of weights.
        minimum: lower clamp, so that a batch with no objects does not divide by zero.
        device: where to put a `value` given as a number.

    Returns:
        0-d float32 tensor without gradient, on the device of `value`.
    """
    if isinstance(value, Tensor):
        mean = value.detach().to(device, torch.float32, copy=True)
    else:
        mean = torch.full((), value, dtype=torch.float32, device=device)  # copied from the host, it would wait
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean.clamp(min=minimum)
