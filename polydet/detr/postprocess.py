"""From predictions of the last layer to detections."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from polydet.layers import cxcywh_to_xyxy, linear_soft_nms


class TopK(nn.Module):
    """The best (query, class) pairs by sigmoid score; a query may appear with several classes.

    Args:
        num: pairs kept.
        soft_nms_iou: class-wise linear soft-NMS over this IoU (Co-DINO: 0.8), of boxes cut at the image's border as in
            the released code; None: no suppression.
        max_detections: kept after soft-NMS; default `num`.
    """

    def __init__(self, num: int = 100, soft_nms_iou: float | None = None, max_detections: int | None = None) -> None:
        super().__init__()
        self.num = num
        self.soft_nms_iou = soft_nms_iou
        self.max_detections = max_detections or num

    def forward(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[Q, K]`` logits, ``[Q, 4]`` boxes to scores ``[n]``, classes ``[n]``, boxes ``[n, 4]`` (as given)."""
        best, index = logits.flatten().topk(min(self.num, logits.numel()))
        query = torch.div(index, logits.shape[1], rounding_mode="floor")
        scores, classes, chosen = best.float().sigmoid(), index % logits.shape[1], boxes[query]
        if self.soft_nms_iou is not None:
            corners = cxcywh_to_xyxy(chosen).clamp(0, 1)  # two boxes that differ beyond the border are one
            keep, scores = linear_soft_nms(corners, scores, classes, self.soft_nms_iou)
            keep, scores = keep[: self.max_detections], scores[: self.max_detections]
            classes, chosen = classes[keep], chosen[keep]
        return scores, classes, chosen


class BestClass(nn.Module):
    """Every query with its best class by softmax; the last logit is background and never wins (DETR)."""

    def forward(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[Q, K + 1]`` logits, ``[Q, 4]`` boxes to scores ``[Q]``, classes ``[Q]``, boxes ``[Q, 4]``."""
        scores, classes = logits.float().softmax(-1)[:, :-1].max(-1)
        return scores, classes, boxes


def to_instances(scores: Tensor, classes: Tensor, boxes: Tensor, height: int, width: int) -> Instances:
    """Detectron2 instances in an image of `height` x `width` pixels, from boxes ``[n, 4]`` cxcywh in (0, 1)."""
    scale = boxes.new_tensor([width, height, width, height])
    pred_boxes = Boxes((cxcywh_to_xyxy(boxes) * scale).float())
    pred_boxes.clip((height, width))
    return Instances((height, width), pred_boxes=pred_boxes, scores=scores, pred_classes=classes)
