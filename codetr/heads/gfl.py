"""GFL as an auxiliary head: quality and distribution focal losses on ATSS samples (arXiv:2006.04388)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from polydet.dense import ATSSHead, DensePredictions, DenseTargets
from polydet.dense.assignment import box_centers
from polydet.layers import distribution_focal_loss, iou_and_giou, mean_over_processes, quality_focal_loss


class GFLHead(ATSSHead):
    """Each side of a box is a distribution over 0..`reg_max` strides; the class score learns the box's IoU.

    Args:
        reg_max: last integer distance, in strides.
        distribution_weight: weight of the distribution focal loss.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[int],
        *,
        reg_max: int = 16,
        distribution_weight: float = 0.25,
        **kwargs: Any,
    ) -> None:
        settings = {"has_quality": False, "box_dim": 4 * (reg_max + 1), **kwargs}
        super().__init__(in_channels, num_classes, strides, **settings)
        self.reg_max = reg_max
        self.distribution_weight = distribution_weight

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Expected distances, in strides, from the anchor's centre."""
        bins = torch.arange(self.reg_max + 1, device=deltas.device, dtype=torch.float32)
        distance = deltas.float().view(-1, 4, self.reg_max + 1).softmax(dim=-1) @ bins
        distance = distance * self.stride_of(anchors)[:, None]
        centers = box_centers(anchors)
        return torch.cat([centers - distance[:, :2], centers + distance[:, 2:]], dim=-1)

    def losses(
        self, predictions: DensePredictions, anchors: Sequence[Tensor], targets: DenseTargets
    ) -> dict[str, Tensor]:
        """`loss_cls` (QFL), `loss_box` (GIoU) and `loss_distribution` (DFL); boxes weigh by their class score."""
        positive, used = targets.positive, targets.used
        logits = predictions.flat_logits()
        labels, gt_boxes = targets.labels[positive], targets.boxes[positive]
        boxes = torch.cat(list(anchors)).expand(len(positive), -1, 4)[positive]
        raw = predictions.flat_deltas()[positive]
        pred_boxes = self.decode(raw, boxes)

        quality = torch.zeros_like(logits)
        rows = positive.nonzero()
        quality[rows[:, 0], rows[:, 1], labels] = iou_and_giou(pred_boxes.detach(), gt_boxes)[0]
        loss_cls = quality_focal_loss(logits[used], quality[used]).sum() / mean_over_processes(targets.num_positives)

        weight = logits.detach()[positive].sigmoid().amax(dim=-1)
        centers, stride = box_centers(boxes), self.stride_of(boxes)[:, None]
        sides = torch.cat([centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers], dim=-1) / stride
        dfl = distribution_focal_loss(raw.view(-1, 4, self.reg_max + 1), sides).mean(dim=-1)
        giou = generalized_box_iou_loss(pred_boxes, gt_boxes)
        total = mean_over_processes(weight.sum())
        return {
            "loss_cls": self.class_weight * loss_cls,
            "loss_box": self.box_weight * (giou * weight).sum() / total,
            "loss_distribution": self.distribution_weight * (dfl * weight).sum() / total,
        }
