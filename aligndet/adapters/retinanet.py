"""RetinaNet: an anchor is assigned by overlap; one embedding per anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from aligndet.adapters.base import projector
from aligndet.adapters.dense import DenseAdapter
from polydet.dense import inside_image


class RetinaNetAdapter(DenseAdapter):
    """Classification tower -> 1x1 conv, ReLU, 1x1 conv to one vector per anchor of a cell; the detector's box loss.

    Both convs are pointwise, so that only sampled cells are projected: the published dense map has 2304 channels.
    Labels and embeddings are indexed by the same (image, level, cell, anchor) rows; the published code flattens
    them in different orders for two images or more.

    Args:
        detector: RetinaNet with one class.
        num_samples: sampled anchors per image.
        dim: channels of the embedding.
        padding_multiple: anchors in a batch's padding take no part; an image counts with its sides rounded up to a
            multiple of this (the authors' pipeline pads to 32).
    """

    predictors = ("head.cls_score", "head.bbox_pred")
    only = {"classification": ("head.cls_subnet",), "regression": ("head.bbox_subnet", "head.bbox_pred")}

    def __init__(
        self, detector: RetinaNet, num_samples: int = 2048, dim: int = 256, padding_multiple: int = 32
    ) -> None:
        super().__init__(detector, num_samples, per="image")
        self.padding_multiple = padding_multiple
        self.num_anchors = detector.anchor_generator.num_anchors[0]
        channels = detector.head.cls_score.in_channels
        self.projector = projector(channels, channels, self.num_anchors * dim)

    def assign(
        self, anchors: list[Boxes], coded: list[Instances], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Any]]:
        """The detector's; padding is ignored, and no object's best anchor lies in it."""
        every = Boxes.cat(anchors).tensor
        labels, boxes = [], []
        for target, size in zip(coded, image_sizes):
            inside = inside_image(every, size, self.padding_multiple)
            without = Boxes(every * inside[:, None])  # boxes without area overlap nothing
            label, matched = self.detector.label_anchors([without], [target])
            labels.append(label[0].masked_fill(~inside, -1))
            boxes += matched
        return labels, boxes

    def embed(self, cells: Tensor, anchor: Tensor) -> Tensor:
        """The vector of each sampled anchor out of the nine of its cell."""
        vectors = self.projector(cells).view(len(cells), self.num_anchors, -1)
        return vectors[torch.arange(len(cells), device=cells.device), anchor]

    def own_losses(self, features: list[Tensor], anchors: list, labels: list[Tensor], boxes: list) -> dict[str, Tensor]:
        """Box regression loss."""
        head = self.detector.head
        deltas = self.flat([head.bbox_pred(head.bbox_subnet(f)) for f in features], 4)
        with torch.autocast(features[0].device.type, enabled=False):
            logits = [x.float() for x in self.no_logits(features)]
            losses = self.detector.losses(anchors, logits, labels, [x.float() for x in deltas], boxes)
        return {"loss_box_reg": losses["loss_box_reg"]}
