"""Large-scale jitter on a fixed canvas with copy-paste (arXiv:2012.07177; Co-DINO-Deformable-DETR++)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.transforms.transform import PadTransform

from polydet.data.augmentations import large_scale_jitter
from polydet.data.mapper import DetectionMapper
from polydet.data.union import Union

__all__ = ["CanvasMapper", "CopyPasteMapper", "PadToCanvas", "canvas_jitter", "canvas_resize", "paste"]


class PadToCanvas(T.Augmentation):
    """Pad below and to the right to a square of `size` pixels. Raises ValueError for an image that is larger."""

    def __init__(self, size: int, value: float = 114.0):
        super().__init__()
        self.size, self.value = int(size), float(value)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The padding of an image [H, W, C]."""
        height, width = image.shape[:2]
        if max(height, width) > self.size:
            raise ValueError(f"a {width}x{height} image does not fit a canvas of {self.size} pixels: resize it before")
        return PadTransform(0, 0, self.size - width, self.size - height, width, height, self.value)


def canvas_jitter(size: int, scale: Sequence[float] = (0.1, 2.0)) -> list[T.Augmentation]:
    """Training: large-scale jitter, flip, and padding to a canvas of `size` x `size`."""
    return [*large_scale_jitter(size, scale), PadToCanvas(size)]


def canvas_resize(size: int) -> list[T.Augmentation]:
    """Test: the longer side to `size`, padding to the canvas."""
    return [T.ResizeShortestEdge(size, size), PadToCanvas(size)]


class CanvasMapper(DetectionMapper):
    """A `DetectionMapper` for images that fill a square canvas after `canvas_resize`.

    At test `height` and `width` are those of the canvas in pixels of the original image, so that boxes, which the model
    gives as fractions of the canvas, come back to the original's pixels.
    """

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """A dataset dict to a model's input."""
        output = super().__call__(record)
        if not self.is_train:
            output["height"] = output["width"] = max(output["height"], output["width"])
        return output


class CopyPasteMapper:
    """Pastes a random part of another image's masked objects; both images are jittered first.

    Args:
        datasets, merge: where the other image is drawn from, the same as the loader's.
        size: of the canvas, pixels.
        scale: of the jitter.
        max_pasted: most objects pasted.
        max_shift, min_area: a covered object stays if its box moved by no more than `max_shift` pixels a side, or
            more than `min_area` pixels of it are left.
        keep_masks: give `gt_masks` to the model.
    """

    def __init__(
        self,
        datasets: Sequence[str],
        size: int = 1024,
        merge: Literal["none", "name"] = "none",
        scale: Sequence[float] = (0.1, 2.0),
        max_pasted: int = 100,
        max_shift: float = 10.0,
        min_area: int = 300,
        keep_masks: bool = False,
    ):
        self.datasets, self.merge = tuple(datasets), merge
        self.max_pasted, self.max_shift, self.min_area = max_pasted, max_shift, min_area
        self.keep_masks = keep_masks
        self.mapper = DetectionMapper(
            is_train=True,
            augmentations=canvas_jitter(size, scale),
            use_masks=True,
            mask_format="bitmask",
            recompute_boxes=True,
        )

    @cached_property
    def others(self) -> Union:
        """The images to paste from; opened where the mapper runs."""
        return Union(self.datasets, self.merge)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """A dataset dict to a model's input."""
        target = self.mapper(record)
        source = self.mapper(self.others[int(np.random.randint(len(self.others)))])
        objects = source["instances"]
        count = int(np.random.randint(0, min(len(objects), self.max_pasted) + 1))
        chosen = np.random.permutation(len(objects))[:count]
        pasted = objects[torch.from_numpy(chosen)]
        target["image"], target["instances"] = paste(
            target["image"], target["instances"], source["image"], pasted, self.max_shift, self.min_area
        )
        if "neg_category_ids" in target:  # what was pasted is certainly there
            new = set(pasted.gt_classes.tolist())
            target["neg_category_ids"] = [c for c in target["neg_category_ids"] if c not in new]
            target["pos_category_ids"] = sorted({*target.get("pos_category_ids", ()), *new})
        if not self.keep_masks:
            target["instances"].remove("gt_masks")
        return target


def paste(
    image: torch.Tensor,
    instances: Instances,
    source: torch.Tensor,
    pasted: Instances,
    max_shift: float = 10.0,
    min_area: int = 300,
) -> tuple[torch.Tensor, Instances]:
    """Put masked objects over an image; objects below lose what is covered.

    Args:
        image, source: uint8 [3, H, W], one size.
        instances, pasted: `gt_boxes`, `gt_classes` and `gt_masks` (`BitMasks`), of `image` and of `source`.
        max_shift, min_area: see `CopyPasteMapper`.

    Returns:
        the image, and its instances with the pasted ones last.
    """
    if not len(pasted):
        return image, instances
    covered = pasted.gt_masks.tensor.any(dim=0)
    image = torch.where(covered, source, image)
    masks = BitMasks(instances.gt_masks.tensor & ~covered)
    boxes = masks.get_bounding_boxes()
    moved = (boxes.tensor - instances.gt_boxes.tensor).abs().amax(dim=1) if len(instances) else torch.zeros(0)
    area = masks.tensor.flatten(1).sum(dim=1)
    # Detectron2's boxes end at the last pixel plus one, and those of the instances come from the same function
    keep = (area > 0) & ((moved <= max_shift) | (area > min_area))
    left = Instances(instances.image_size)
    left.gt_boxes, left.gt_classes, left.gt_masks = boxes[keep], instances.gt_classes[keep], masks[keep]
    result = Instances(instances.image_size)
    result.gt_boxes = Boxes(torch.cat([left.gt_boxes.tensor, pasted.gt_boxes.tensor]))
    result.gt_classes = torch.cat([left.gt_classes, pasted.gt_classes])
    result.gt_masks = BitMasks(torch.cat([left.gt_masks.tensor, pasted.gt_masks.tensor]))
    return image, result
