"""How a CPU computes: small numbers flushed, and the first step of a process rounded as all later ones."""

import contextlib
from collections.abc import Iterator

import torch


def denormals_are_zero() -> bool:
    """Whether the CPU takes numbers below float32's normal range for zero in this thread."""
    return not bool(torch.tensor(1e-40) * 1.0 > 0)


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Take them for zero until the block ends, in its threads too: a CPU computes them a hundred times slower.

    Focal losses make them: the gradient of a class that is surely absent is its probability to the third power.
    """
    before = denormals_are_zero()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def same_rounding() -> Iterator[None]:
    """Run scripted functions as they are written until the block ends, every time alike.

    TorchScript's executor (Detectron2's focal and GIoU losses are scripted) looks on at the first call of a function
    and fuses it for later ones, which then round otherwise: a resumed run would differ from an uninterrupted one.
    """
    with torch.jit.optimized_execution(False):
        yield
