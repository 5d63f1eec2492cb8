"""The numbers that both sides draw where an authors' code draws at random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from golden_rules import uniform
from torch import Tensor


@contextmanager
def fixed_noise() -> Iterator[None]:
    """Denoising and sampling without chance, for a training step of either side.

    `torch.rand`, `rand_like` give the stream named after their shape, so draws of one shape are equal; `randint_like`
    the same, stretched over its range, for real tensors, and always 1 for integers (the authors draw a class only for
    the labels that flip, we for all); `randperm` is the identity.
    """

    def rand(shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(uniform(f"rand/{list(shape)}", shape) * 0.5 + 0.5)

    def rand_like(like: Tensor, **_: Any) -> Tensor:
        return rand(tuple(like.shape)).to(like.dtype)

    def randint_like(like: Tensor, low: int, high: int | None = None, **_: Any) -> Tensor:
        low, high = (0, low) if high is None else (low, high)
        if not like.is_floating_point():
            return torch.ones_like(like)
        value = uniform(f"randint/{list(like.shape)}", tuple(like.shape)) * 0.5 + 0.5
        return torch.from_numpy(low + value * (high - low)).floor().to(like.dtype)

    def randperm(count: int, **_: Any) -> Tensor:
        return torch.arange(count)

    replaced = {
        "rand": lambda *shape, **_: rand(tuple(shape[0]) if isinstance(shape[0], (tuple, torch.Size)) else shape),
        "rand_like": rand_like,
        "randint_like": randint_like,
        "randperm": randperm,
    }
    with mock.patch.multiple(torch, **replaced):
        yield
