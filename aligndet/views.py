"""Two augmented views of one image, the i-th box of both being the same proposal (section 3.2, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image, ImageEnhance, ImageOps

from polydet.data import read_image

SHORT_SIDES = (640, 672, 704, 736, 768, 800)


def _enhance(kind: type) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, m: kind(image).enhance(0.1 + 0.18 * m)


# every colour operation of SoftTeacher's strong branch, at an integer magnitude m from 1 to 9
OPERATIONS: Mapping[str, Callable[[Image.Image, int], Image.Image]] = {
    "identity": lambda image, m: image,
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "solarize": lambda image, m: ImageOps.solarize(image, round(25.6 * m)),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": lambda image, m: ImageOps.posterize(image, 4 - int(0.4 * m)),
}


def recolour(image: np.ndarray, operation: str, magnitude: int) -> np.ndarray:
    """Apply one of :data:`OPERATIONS` at a magnitude from 1 to 9.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    return np.asarray(OPERATIONS[operation](Image.fromarray(image), magnitude))


class TwoViewMapper:
    """Dataset dict -> two independent draws of one pipeline: resize, flip, one colour operation of nine.

    No crop and no other geometry, so that every proposal is in both views. Draws come from numpy's global generator,
    which the loader seeds per sample.

    Args:
        short_edge_lengths: the short side is one of these, in pixels.
        max_size: bound of the long side, in pixels.
        flip: probability of a horizontal flip.
        operations: names out of :data:`OPERATIONS`, drawn with equal probability.
        max_proposals: take the first so many boxes of an image (RetinaNet and DETR: 50); None takes all.
        random_resize: ``(low, high)``: draw the short side from this range of integers instead.
    """

    def __init__(
        self,
        short_edge_lengths: Sequence[int] = SHORT_SIDES,
        max_size: int = 1333,
        flip: float = 0.5,
        operations: Sequence[str] = tuple(OPERATIONS),
        max_proposals: int | None = None,
        random_resize: tuple[int, int] | None = None,
    ) -> None:
        unknown = [name for name in operations if name not in OPERATIONS]
        if unknown or not operations:
            raise ValueError(f"unknown colour operations {unknown}; there are {list(OPERATIONS)}")
        lengths, style = (tuple(short_edge_lengths), "choice")
        if random_resize is not None:
            lengths, style = tuple(random_resize), "range"
        self.geometry = T.AugmentationList([T.ResizeShortestEdge(lengths, max_size, style), T.RandomFlip(prob=flip)])
        self.operations = list(operations)
        self.max_proposals = max_proposals

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Map one Detectron2 dataset dict.

        Returns:
            The record without ``annotations``, with ``image`` (uint8 ``[3, h, w]``, RGB) and ``instances``
            (``gt_boxes`` xyxy pixels of that view, ``gt_classes`` pseudo-class), and the second view as
            ``second_image`` and ``second_boxes`` (float32 ``[n, 4]``): row i of both is the same proposal. None for
            an image without proposals.
        """
        annotations = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)][: self.max_proposals]
        if not annotations:
            return None
        image = read_image(record)
        boxes = np.asarray(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations], np.float64
        )
        first, first_boxes = self._view(image, boxes)
        second, second_boxes = self._view(image, boxes)
        instances = Instances(tuple(first.shape[1:]))
        instances.gt_boxes = Boxes(first_boxes)
        instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        kept = {key: value for key, value in record.items() if key != "annotations"}
        return {
            **kept,
            "image": first,
            "instances": instances,
            "second_image": second,
            "second_boxes": second_boxes,
        }

    def _view(self, image: np.ndarray, boxes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = T.AugInput(image)
        transform = self.geometry(inputs)
        operation = self.operations[np.random.randint(len(self.operations))]
        pixels = recolour(inputs.image, operation, int(np.random.randint(1, 10)))
        height, width = pixels.shape[:2]
        moved = np.clip(transform.apply_box(boxes), 0, [width, height, width, height])
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return tensor, torch.from_numpy(moved).float()
