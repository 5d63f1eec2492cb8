"""Two drawn views of the same objects, and a drawn order in place of a random one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.structures import Boxes
from golden_file import batch
from golden_rules import uniform
from torch import Tensor


def two_views(step: str, images: Sequence[Sequence[int]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A step's drawn batch, and the images of ``{step}/second`` with the first view's boxes mirrored."""
    first, second = batch(step, images, 1), batch(f"{step}/second", images, 1)
    for one, other in zip(first, second):
        boxes = one["instances"].gt_boxes.tensor
        mirrored = [one["width"] - boxes[:, 2], boxes[:, 1], one["width"] - boxes[:, 0], boxes[:, 3]]
        other["instances"].gt_boxes = Boxes(torch.stack(mirrored, 1))
    return first, second


@contextmanager
def fixed_order() -> Iterator[None]:
    """`torch.randperm(n)` is the order of n drawn numbers, for either side."""

    def randperm(count: int, **_: Any) -> Tensor:
        return torch.from_numpy(np.argsort(uniform(f"randperm/{count}", count), kind="stable"))

    with mock.patch.object(torch, "randperm", randperm):
        yield
