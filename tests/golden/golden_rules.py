"""Weights, images and objects that a seed and a name determine, the same on every machine; nothing is stored.

Every number comes from `numpy.random.RandomState` (the Mersenne twister, a stream that numpy keeps for good), seeded
by the eight 32-bit words of SHA-256 of ``"{seed}/{name}"``, read as uniform doubles ``u`` in [-1, 1). A tensor is
named as the authors' code names it, so both sides draw the same numbers before any layout map has run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

Gain = tuple[str, float, float]  # regular expression searched in the name, factor, shift; the first that matches acts


def uniform(name: str, size: int | Sequence[int], seed: int = 0) -> np.ndarray:
    """Doubles in [-1, 1) of the stream called `name`."""
    words = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest(), dtype="<u4")
    return np.random.RandomState(words).random_sample(size) * 2 - 1


def draw(name: str, shape: Sequence[int], gains: Sequence[Gain] = (), seed: int = 0) -> np.ndarray:
    """A weight or buffer, float32.

    Matrices and filters are ``u * sqrt(3 / fan_in)`` (unit variance in, unit variance out); a norm's scale is
    ``1 + 0.2 u``, `running_var` ``1 + 0.3 u``, `running_mean` and every bias ``0.1 u``; a number ``1 + 0.1 u``. Then
    the first gain whose pattern occurs in the name makes ``factor * value + shift`` of it.
    """
    u = uniform(name, tuple(shape), seed)
    if len(shape) == 0:
        value = 1 + 0.1 * u
    elif len(shape) > 1:
        value = u * (3.0 / np.prod(shape[1:], dtype=float)) ** 0.5
    elif name.endswith("running_var"):
        value = 1 + 0.3 * u
    elif name.endswith("weight"):
        value = 1 + 0.2 * u
    else:
        value = 0.1 * u
    for pattern, factor, shift in gains:
        if re.search(pattern, name):
            value = factor * value + shift
            break
    return np.asarray(value, dtype=np.float32)


def draw_state(
    shapes: Mapping[str, Sequence[int]], gains: Sequence[Gain] = (), aliases: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """All weights of a model; `aliases` are further names of a tensor that the model uses twice."""
    state = {name: draw(name, shape, gains) for name, shape in shapes.items()}
    state.update({name: state[of] for name, of in (aliases or {}).items()})
    return state


def draw_image(name: str, height: int, width: int, cell: int = 8) -> np.ndarray:
    """RGB ``[3, height, width]`` uint8: cells of one colour (three quarters) under noise (one quarter)."""
    rows, columns = -(-height // cell), -(-width // cell)
    coarse = uniform(f"{name}/cells", (3, rows, columns)).repeat(cell, axis=1).repeat(cell, axis=2)
    noise = uniform(f"{name}/noise", (3, height, width))
    mixed = 0.75 * coarse[:, :height, :width] + 0.25 * noise
    return np.floor((mixed + 1) * 128).clip(0, 255).astype(np.uint8)


def draw_objects(
    name: str, count: int, height: int, width: int, num_classes: int, least: float = 0.15, most: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``[count, 4]`` float32 (xyxy pixels inside the image, sides `least` to `most` of the image's) and labels
    ``[count]`` int64."""
    side, place = (uniform(f"{name}/{kind}", (count, 2)) * 0.5 + 0.5 for kind in ("sides", "places"))
    side = least + (most - least) * side
    low = place * (1 - side)
    boxes = np.concatenate((low, low + side), axis=1) * np.array([width, height, width, height])
    labels = np.floor((uniform(f"{name}/labels", count) * 0.5 + 0.5) * num_classes).astype(np.int64)
    return boxes.astype(np.float32), labels


def directions(name: str, shape: Sequence[int]) -> np.ndarray:
    """Two directions ``[2, n]`` of unit variance onto which the gradient of a tensor of n elements is projected."""
    u = uniform(f"direction/{name}", int(np.prod(shape, dtype=np.int64))) * 3.0**0.5
    return np.stack((u, u[::-1]))
