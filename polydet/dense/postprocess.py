"""From dense predictions of one image to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .assignment import inside_image


@dataclass(frozen=True)
class DenseInference:
    """Thresholds of inference: class score, candidates kept a level, NMS IoU, detections kept an image.

    `select_padding`: anchors centred in a batch's padding are candidates too (mmdetection).
    """

    score_threshold: float = 0.05
    topk_per_level: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    select_padding: bool = False


class Decoder(Protocol):
    """What `select_detections` needs of a head."""

    settings: DenseInference

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes xyxy of raw outputs."""

    def scores(self, class_scores: Tensor, quality: Tensor | None) -> Tensor:
        """Final scores."""


def select_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    quality: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_size: tuple[int, int],
    head: Decoder,
) -> Instances:
    """Best (anchor, class) pairs of each level by class score, then class-wise NMS on the final scores.

    Args:
        logits, deltas, quality: per level `[N_l, C]`, `[N_l, box_dim]`, `[N_l]` of one image.
        anchors: per level `[N_l, 4]`.
        image_size: height, width in the pixels of the network's input; boxes are clipped to it.
    """
    settings = head.settings
    boxes, scores, classes = [], [], []
    for level, level_logits in enumerate(logits):
        probability = level_logits.sigmoid()
        if not settings.select_padding:
            probability = probability.masked_fill(~inside_image(anchors[level], image_size)[:, None], float("-inf"))
        probability = probability.flatten()
        value, index = probability.topk(min(settings.topk_per_level, len(probability)))
        keep = value > settings.score_threshold
        value, index = value[keep], index[keep]
        row = torch.div(index, level_logits.shape[1], rounding_mode="floor")
        boxes.append(head.decode(deltas[level][row], anchors[level][row]))
        scores.append(head.scores(value, quality[level][row].sigmoid() if quality else None))
        classes.append(index % level_logits.shape[1])
    result = Instances(image_size)
    result.pred_boxes = Boxes(torch.cat(boxes))
    result.scores = torch.cat(scores)
    result.pred_classes = torch.cat(classes)
    result.pred_boxes.clip(image_size)
    kept = batched_nms(result.pred_boxes.tensor, result.scores, result.pred_classes, settings.nms_threshold)
    return result[kept[: settings.max_detections]]
