"""Bipartite matching of predictions and objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from polydet.layers import cxcywh_to_xyxy, iou_and_giou

from .structures import Assignment, Predictions, Targets


def focal_class_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of calling a query by an object's class minus that of calling it background (Deformable DETR).

    The label columns are gathered before the sigmoid: with thousands of classes this is most of the matching time.

    Args:
        logits: ``[L, B, Q, K]``. labels: ``[B, N]``.

    Returns:
        ``[L, B, Q, N]``.
    """
    x = gather_labels(logits, labels)
    p = x.sigmoid()
    positive = alpha * (1 - p).pow(gamma) * F.softplus(-x)
    negative = (1 - alpha) * p.pow(gamma) * F.softplus(x)
    return positive - negative


def softmax_class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of the object's class (DETR). Shapes as in `focal_class_cost`."""
    x = gather_labels(logits, labels)
    return -(x - logits.logsumexp(-1, keepdim=True)).exp()


def gather_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Columns of the objects' classes: ``[L, B, Q, K]`` and ``[B, N]`` to ``[L, B, Q, N]``."""
    index = labels[None, :, None].expand(*logits.shape[:3], -1)
    return logits.gather(-1, index)


class HungarianMatcher(nn.Module):
    """Cheapest one-to-one assignment per image and layer (DETR, sec. 3.1).

    One cost tensor is made for all layers and images and copied to the host once; scipy solves the slices.
    Subclasses change `cost`. Pairs with a cost of at least `forbidden_cost` are dropped from the result.

    Args:
        class_cost: kind of the classification cost; weights of the three terms follow.
    """

    forbidden_cost = 1e6

    def __init__(
        self,
        class_cost: Literal["focal", "softmax"] = "focal",
        class_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__()
        if class_cost not in ("focal", "softmax"):
            raise ValueError(f"class_cost must be focal or softmax, got {class_cost!r}")
        self.kind = class_cost
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[L, B, Q, K]`` logits and ``[B, N]`` labels to ``[L, B, Q, N]``."""
        if self.kind == "focal":
            return focal_class_cost(logits, labels)
        return softmax_class_cost(logits, labels)

    def cost(self, predictions: Predictions, labels: Tensor, boxes: Tensor) -> Tensor:
        """Cost of every prediction for every object.

        Args:
            labels: ``[B, N]``, boxes: ``[B, N, 4]`` cxcywh, padded to the most objects of an image.

        Returns:
            ``[L, B, Q, N]``; columns of padding are never read.
        """
        # float32 at least: half precision cannot rank boxes that differ by a pixel
        dtype = torch.promote_types(predictions.boxes.dtype, torch.float32)
        mine = predictions.boxes.to(dtype)
        theirs = boxes[None].to(dtype)
        distance = torch.cdist(mine, theirs.expand(mine.shape[0], -1, -1, -1), p=1)
        giou = iou_and_giou(cxcywh_to_xyxy(mine)[..., :, None, :], cxcywh_to_xyxy(theirs)[..., None, :, :])[1]
        classes = self.class_cost(predictions.logits.to(dtype), labels)
        return self.class_weight * classes + self.box_weight * distance - self.giou_weight * giou

    @torch.no_grad()
    def forward(self, predictions: Predictions, targets: Sequence[Targets]) -> Assignment:
        """Assign the objects of each image at each layer.

        Raises:
            ValueError: a cost is NaN or infinite (a diverged model, or a broken image or box); names the image.
        """
        device = predictions.boxes.device
        counts = [len(t) for t in targets]
        if not any(counts):
            none = torch.zeros(0, dtype=torch.int64, device=device)
            return Assignment(none, none, none, none)
        with torch.autocast(device.type, enabled=False):
            labels = nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True)
            boxes = nn.utils.rnn.pad_sequence([t.boxes for t in targets], batch_first=True, padding_value=0.5)
            cost = self.cost(predictions, labels, boxes).cpu().numpy()
        rows = self._solve(cost, counts, targets)
        layer, image, query, target = torch.from_numpy(rows).to(device)
        return Assignment(layer, image, query, target)

    def _solve(self, cost: np.ndarray, counts: Sequence[int], targets: Sequence[Targets]) -> np.ndarray:
        """``[4, M]`` layer, image, query, target."""
        parts = []
        for image, count in enumerate(counts):
            block = cost[:, image, :, :count]
            if not np.isfinite(block).all():
                raise ValueError(
                    f"the matching cost of image {targets[image].name} is not finite: look at its pixels and boxes, "
                    "then at the loss before this step (a learning rate too high, or no gradient clipping)"
                )
            for layer in range(len(block)):
                query, target = linear_sum_assignment(block[layer])
                allowed = block[layer][query, target] < self.forbidden_cost
                query, target = query[allowed], target[allowed]
                parts.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target)))
        return np.concatenate(parts, axis=1).astype(np.int64)
