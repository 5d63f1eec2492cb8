"""Test-time augmentation: several scales and flips, merged by box voting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_iou

from polydet.data import read_image


def box_voting(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float = 0.6, vote_threshold: float = 0.65
) -> tuple[Tensor, Tensor]:
    """Class-wise NMS whose kept boxes become the mean, weighted by score, of the boxes that agree with them.

    The voters of a kept box are all boxes of its class, suppressed or not, with an IoU of at least
    `vote_threshold` (arXiv:1505.01749, section 5).

    Args:
        boxes: `[n, 4]` xyxy pixels; scores, classes: `[n]`.

    Returns:
        indices kept, best first, and their new boxes `[m, 4]`.
    """
    kept = batched_nms(boxes, scores, classes, nms_threshold)
    votes = (box_iou(boxes[kept], boxes) >= vote_threshold) & (classes[kept][:, None] == classes)
    weight = votes * scores
    total = weight.sum(dim=1, keepdim=True)
    voted = torch.where(total > 0, weight @ boxes / total.clamp(min=1e-12), boxes[kept])
    return kept, voted


Detector = Callable[[Sequence[dict[str, Any]]], list[dict[str, Instances]]]


class BoxVotingTTA:
    """Runs a detector at several sizes and flipped, and merges the detections by `box_voting`.

    Args:
        short_sides: of the image in the network's input, pixels.
        max_size: of the longer side.
        flip: also run each size mirrored.
        nms_threshold, vote_threshold: see `box_voting`.
        max_detections: kept an image.
    """

    def __init__(
        self,
        short_sides: Sequence[int] = (640, 800, 1024, 1200),
        max_size: int = 2000,
        flip: bool = True,
        nms_threshold: float = 0.6,
        vote_threshold: float = 0.65,
        max_detections: int = 300,
    ) -> None:
        self.short_sides, self.max_size, self.flip = tuple(short_sides), max_size, flip
        self.nms_threshold, self.vote_threshold = nms_threshold, vote_threshold
        self.max_detections = max_detections

    @torch.no_grad()
    def __call__(self, detect: Detector, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detectron2's inference contract, by any detector that keeps it.

        The image is read again from `file_name`, where there is one, at full size.
        """
        return [{"instances": self.merge(detect, x)} for x in batched_inputs]

    def merge(self, detect: Detector, x: dict[str, Any]) -> Instances:
        """Detections of one image in the pixels of the original."""
        image = read_image(x) if "file_name" in x else np.ascontiguousarray(x["image"].permute(1, 2, 0).numpy())
        height, width = (int(x[k]) if k in x else n for k, n in zip(("height", "width"), image.shape))
        found = []
        for short_side in self.short_sides:
            resized = T.AugInput(image)
            T.ResizeShortestEdge(short_side, self.max_size)(resized)
            tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
            found.append(_detect(detect, tensor, height, width))
            if self.flip:
                mirrored = _detect(detect, tensor.flip(2), height, width)
                left, top, right, bottom = mirrored.pred_boxes.tensor.unbind(1)
                mirrored.pred_boxes = Boxes(torch.stack([width - right, top, width - left, bottom], dim=1))
                found.append(mirrored)
        every = Instances.cat(found)
        kept, voted = box_voting(
            every.pred_boxes.tensor,
            every.scores,
            every.pred_classes,
            self.nms_threshold,
            self.vote_threshold,
        )
        result = every[kept]
        result.pred_boxes = Boxes(voted)
        return result[: self.max_detections]


def _detect(detect: Detector, image: Tensor, height: int, width: int) -> Instances:
    found = detect([{"image": image, "height": height, "width": width}])[0]["instances"]
    return Instances((height, width), pred_boxes=found.pred_boxes, scores=found.scores, pred_classes=found.pred_classes)
