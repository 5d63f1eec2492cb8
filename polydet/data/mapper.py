"""From a dataset dict to a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from polydet.data.images import read_image

__all__ = ["DetectionMapper"]


class DetectionMapper:
    """Reads the image, augments image and boxes alike, and packs them for a Detectron2 model.

    Boxes are clipped to the augmented image and dropped if nothing is left of them; crowds are dropped. Output keys:
    `image` uint8 [3, H, W], `height` and `width` of the original, `file_name`, `image_id`, `dataset_name`, verified
    labels of federated cards, `caption` where there is one, and in training `instances` (`gt_boxes` xyxy pixels of
    the augmented image, `gt_classes`, optionally `gt_masks`) and for grounding data `phrases`, one per instance.

    Args:
        is_train: whether instances are made.
        augmentations: see `polydet.data.augmentations`; random ones draw from numpy's global generator.
        image_format: channel order.
        use_masks: make `gt_masks`; annotations without a valid mask are then dropped.
        mask_format: `polygon` or `bitmask`.
        recompute_boxes: make boxes tight around the augmented masks.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        use_masks: bool = False,
        mask_format: Literal["polygon", "bitmask"] = "polygon",
        recompute_boxes: bool = False,
    ):
        if recompute_boxes and not use_masks:
            raise ValueError("recompute_boxes needs use_masks")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_masks = use_masks
        self.mask_format = mask_format
        self.recompute_boxes = recompute_boxes

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """A dataset dict (not changed) to a model's input."""
        image = read_image(record, self.image_format)
        original = image.shape[:2]
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        output = {key: value for key, value in record.items() if key not in _NOT_FORWARDED}
        output["height"], output["width"] = original
        output["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            kept = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
            instances, rows = self.instances(kept, transforms, image.shape[:2])
            output["instances"] = instances
            if kept and "phrase" in kept[0]:
                output["phrases"] = [kept[i]["phrase"] for i in rows]
        return output

    def instances(
        self, annotations: list[dict[str, Any]], transforms: T.Transform, size: tuple[int, int]
    ) -> tuple[Instances, list[int]]:
        """Ground truth after `transforms` on an image of `size` (h, w), and which annotations are left."""
        if self.use_masks:
            annotations_left = [i for i, a in enumerate(annotations) if "segmentation" in a]
        else:
            annotations_left = list(range(len(annotations)))
        boxes = np.array([annotations[i]["bbox"] for i in annotations_left], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # XYWH -> xyxy
        boxes = transforms.apply_box(boxes) if len(boxes) else boxes
        boxes = np.clip(boxes, 0, (size[1], size[0], size[1], size[0]))
        keep = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) > _MIN_SIDE).all(axis=1))
        rows = [annotations_left[i] for i in keep]
        result = Instances(size)
        result.gt_boxes = Boxes(torch.as_tensor(boxes[keep], dtype=torch.float32))
        result.gt_classes = torch.as_tensor([annotations[i]["category_id"] for i in rows], dtype=torch.int64)
        if self.use_masks:
            result, rows = self._add_masks(result, rows, annotations, transforms, size)
        return result, rows

    def _add_masks(
        self,
        result: Instances,
        rows: list[int],
        annotations: list[dict[str, Any]],
        transforms: T.Transform,
        size: tuple[int, int],
    ) -> tuple[Instances, list[int]]:
        """Add `gt_masks` and drop instances of whose mask nothing is left."""
        packed = []
        for i in rows:
            annotation = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
            annotation["segmentation"] = annotations[i]["segmentation"]
            if self.mask_format == "polygon" and isinstance(annotation["segmentation"], dict):
                raise ValueError("a mask is run-length encoded: give the mapper mask_format='bitmask'")
            packed.append(detection_utils.transform_instance_annotations(annotation, transforms, size))
        filled = [i for i, a in enumerate(packed) if len(a["segmentation"])]  # a crop may leave nothing of a polygon
        result, rows = result[filled], [rows[i] for i in filled]
        if not filled:
            empty = torch.zeros(0, *size, dtype=torch.bool)
            result.gt_masks = PolygonMasks([]) if self.mask_format == "polygon" else BitMasks(empty)
            return result, rows
        masks = detection_utils.annotations_to_instances(
            [packed[i] for i in filled], size, mask_format=self.mask_format
        ).gt_masks
        result.gt_masks = masks
        if self.recompute_boxes:
            result.gt_boxes = masks.get_bounding_boxes()
        keep = masks.nonempty() & result.gt_boxes.nonempty()
        return result[keep], [row for row, use in zip(rows, keep.tolist()) if use]


_MIN_SIDE = 1e-5  # pixels, Detectron2's threshold of an empty box
_NOT_FORWARDED = frozenset({"annotations", "file_offset", "file_size"})
