"""The papers' image augmentations, in Detectron2's types; all draw from numpy's global generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from PIL import Image

__all__ = [
    "EfficientDetResizeCrop",
    "RandomSelect",
    "ResizeCropTransform",
    "detr_multi_scale",
    "fixed_resize",
    "large_scale_jitter",
    "resize_shortest_edge",
]


class ResizeCropTransform(T.Transform):
    """Resize an image to `new_size`, then crop; pixels outside the crop are never computed.

    Args:
        size: (h, w) of the input.
        new_size: (h, w) after the resize.
        offset: (y, x) of the crop's corner in the resized image.
        crop: (h, w) of the crop.
    """

    def __init__(
        self, size: tuple[int, int], new_size: tuple[int, int], offset: tuple[int, int], crop: tuple[int, int]
    ):
        super().__init__()
        self._set_attributes({"size": size, "new_size": new_size, "offset": offset, "crop": crop})

    @property
    def _scale(self) -> tuple[float, float]:
        return self.new_size[0] / self.size[0], self.new_size[1] / self.size[1]

    def apply_image(self, img: np.ndarray, interp: int = Image.Resampling.BILINEAR) -> np.ndarray:
        """uint8 [H, W, C] or [H, W] -> the crop."""
        (sy, sx), (y, x), (h, w) = self._scale, self.offset, self.crop
        box = (x / sx, y / sy, (x + w) / sx, (y + h) / sy)
        box = (box[0], box[1], min(box[2], img.shape[1]), min(box[3], img.shape[0]))
        return np.asarray(Image.fromarray(img).resize((w, h), interp, box=box))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Label map [H, W] -> the crop, nearest neighbour."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """xy pixels [n, 2] -> xy pixels of the crop."""
        (sy, sx), (y, x) = self._scale, self.offset
        return coords * (sx, sy) - (x, y)

    def apply_polygons(self, polygons: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Polygons, cut at the crop's border."""
        (sy, sx), (y, x), (h, w) = self._scale, self.offset, self.crop
        resized = [polygon * (sx, sy) for polygon in polygons]
        return T.CropTransform(x, y, w, h, self.new_size[1], self.new_size[0]).apply_polygons(resized)


class EfficientDetResizeCrop(T.Augmentation):
    """Large-scale jitter of EfficientDet as Detic and ScaleDet use it (`specs`: ScaleDet section 4).

    u ~ U(scale); the image is resized by min(u S / h, u S / w), bilinear; where a side is longer than S, a random
    part of length S is kept. Shorter sides are left to batch padding.
    """

    def __init__(self, size: int, scale: Sequence[float] = (0.1, 2.0)):
        super().__init__()
        self.size, self.low, self.high = int(size), float(scale[0]), float(scale[1])

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the resize and the crop for an image [H, W, C]."""
        height, width = image.shape[:2]
        target = np.random.uniform(self.low, self.high) * self.size
        factor = min(target / height, target / width)
        new = max(int(height * factor), 1), max(int(width * factor), 1)
        crop = min(new[0], self.size), min(new[1], self.size)
        offset = tuple(int((n - c) * np.random.uniform()) for n, c in zip(new, crop))
        return ResizeCropTransform((height, width), new, offset, crop)  # type: ignore[arg-type]


class RandomSelect(T.Augmentation):
    """One of two lists of augmentations: the first with probability `prob`, else the second."""

    def __init__(self, first: Sequence[T.Augmentation], second: Sequence[T.Augmentation], prob: float = 0.5):
        super().__init__()
        self.first, self.second, self.prob = T.AugmentationList(first), T.AugmentationList(second), prob

    def __call__(self, aug_input: Any) -> T.Transform:
        """Apply the drawn list in place and return its transforms."""
        return (self.first if np.random.uniform() < self.prob else self.second)(aug_input)


def large_scale_jitter(size: int, scale: Sequence[float] = (0.1, 2.0)) -> list[T.Augmentation]:
    """`EfficientDetResizeCrop` and a horizontal flip."""
    return [EfficientDetResizeCrop(size, scale), T.RandomFlip()]


def resize_shortest_edge(
    short: int | Sequence[int], max_size: int = 1333, flip: bool = True, style: str = "choice"
) -> list[T.Augmentation]:
    """Short side to one of `short` (with `style="range"`: between two), long side at most `max_size`; flip."""
    sizes = [short] if isinstance(short, int) else list(short)
    if len(sizes) == 1:
        style = "choice"
    return [T.ResizeShortestEdge(sizes, max_size, style)] + ([T.RandomFlip()] if flip else [])


def fixed_resize(height: int, width: int, flip: bool = False) -> list[T.Augmentation]:
    """Both sides to a fixed size, aspect ratio not kept; flip if wanted."""
    return [T.Resize((height, width))] + ([T.RandomFlip()] if flip else [])


def detr_multi_scale(
    short: Sequence[int] = tuple(range(480, 801, 32)),
    max_size: int = 1333,
    crop_short: Sequence[int] = (400, 500, 600),
    crop: tuple[int, int] = (384, 600),
) -> list[T.Augmentation]:
    """DETR's training augmentation: flip, then with probability 0.5 a multi-scale resize, else resize, crop, resize."""
    resize = T.ResizeShortestEdge(list(short), max_size, "choice")
    return [
        T.RandomFlip(),
        RandomSelect(
            [resize],
            [
                T.ResizeShortestEdge(list(crop_short), sample_style="choice"),
                T.RandomCrop("absolute_range", tuple(crop)),
                resize,
            ],
        ),
    ]
