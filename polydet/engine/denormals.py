"""Numbers below float32's normal range, which a CPU computes a hundred times slower."""

import contextlib
from collections.abc import Iterator

import torch


def denormals_are_zero() -> bool:
    """Whether the CPU takes such numbers for zero in this thread."""
    return not bool(torch.tensor(1e-40) * 1.0 > 0)


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Take them for zero until the block ends; threads started in it do so too.

    Focal losses make them: the gradient of a class that is surely absent is its probability to the third power.
    """
    before = denormals_are_zero()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
