"""Which implementation runs, said out loud: chosen by device, or by the user, and never changed behind the back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Backend = Literal["auto", "triton", "cpu", "reference"]

_choice: Backend = "auto"


def backend(device: torch.device | str | None = None) -> str:
    """Name of the implementation that inputs on ``device`` get: ``"triton"``, ``"cpu"`` or ``"reference"``.

    Without a device: the default device's answer, so ``"cpu"`` unless chosen or set otherwise.
    CUDA gets the Triton kernels, the CPU the fast CPU path, any other device the PyTorch reference.
    """
    if _choice != "auto":
        return _choice
    kind = torch.get_default_device().type if device is None else torch.device(device).type
    return {"cuda": "triton", "cpu": "cpu"}.get(kind, "reference")


def chosen() -> Backend:
    """What was set with :func:`set_backend`, ``"auto"`` at first."""
    return _choice


def set_backend(name: Backend) -> None:
    """Force one implementation for the process: ``"triton"``, ``"cpu"``, ``"reference"``; ``"auto"`` undoes it.

    Raises:
        ValueError: for another name.
    """
    global _choice
    if name not in get_args(Backend):
        raise ValueError(f"backend {name!r} is not one of {', '.join(get_args(Backend))}")
    _choice = name


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """:func:`set_backend` for the length of a ``with`` block."""
    before = _choice
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)
