"""PAA as an auxiliary head: probabilistic anchor assignment with IoU prediction (arXiv:2007.08103)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from polydet.dense import BACKGROUND, ATSSHead, DensePredictions, DenseTargets, dense_targets
from polydet.layers import iou_and_giou

from .retinanet import iou_assign


def separate(losses: np.ndarray) -> np.ndarray:
    """Split ascending losses of one object's candidates by a mixture of two Gaussians (paper, section 3.2).

    Returns:
        indices of the positives: the low-loss component up to its most probable member
        (scheme (c) of figure 3, what the authors' code does).
    """
    if len(losses) < 2:
        return np.arange(len(losses))
    values = losses.astype(np.float64)[:, None]
    mixture = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[values[0], values[-1]],
        precisions_init=[[1.0], [1.0]],
        covariance_type="diag",
    ).fit(values)
    low = np.flatnonzero(mixture.predict(values) == 0)
    if not len(low):
        return low
    return low[: int(np.argmax(mixture.score_samples(values)[low])) + 1]


@torch.no_grad()
def paa_assign(candidates: Tensor, losses: Tensor, level_sizes: Sequence[int], num_gt: int, topk: int = 9) -> Tensor:
    """Keep, for each object, the candidates whose loss belongs to the good component.

    Args:
        candidates: `[N]` first assignment by IoU: index of an object or negative.
        losses: `[N]` loss of each candidate for its object (others are not read).
        level_sizes: anchors a level, in the order of the anchors.
        topk: candidates with least loss kept a level and object.

    Returns:
        `[N]` int64, index of the object or `BACKGROUND`.
    """
    result = torch.full_like(candidates, BACKGROUND)
    for target in range(num_gt):
        chosen, start = [], 0
        for size in level_sizes:
            mine = (candidates[start : start + size] == target).nonzero().squeeze(1) + start
            best = losses[mine].topk(min(topk, len(mine)), largest=False).indices
            chosen.append(mine[best])
            start += size
        index = torch.cat(chosen)
        order = losses[index].argsort(stable=True)
        index = index[order]
        positive = separate(losses[index].cpu().numpy())
        result[index[torch.from_numpy(positive).to(index.device)]] = target
    return result


class PAAHead(ATSSHead):
    """`ATSSHead` whose assignment comes from its own losses and whose quality branch predicts IoU.

    Args:
        candidate_iou: IoU from which an anchor is a candidate for its best object.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[int],
        *,
        candidate_iou: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, num_classes, strides, **{"box_weight": 1.3, "quality_weight": 0.5, **kwargs})
        self.candidate_iou = candidate_iou

    @torch.no_grad()
    def assign(
        self,
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        instances: Sequence[Instances],
        image_sizes: Sequence[tuple[int, int]],
    ) -> DenseTargets:
        """See `paa_assign`; anchors in the padding are ignored."""
        first = super().assign(predictions, anchors, instances, image_sizes)
        logits, deltas = predictions.flat_logits(), predictions.flat_deltas()
        boxes = torch.cat(list(anchors))
        matches = []
        for i, match in enumerate(first.matches):
            candidate = match >= 0
            losses = torch.zeros(len(boxes), device=boxes.device)
            losses[candidate] = self.candidate_losses(
                logits[i, candidate], deltas[i, candidate], boxes[candidate],
                first.labels[i, candidate], first.boxes[i, candidate],
            )  # fmt: skip
            kept = paa_assign(match, losses, [len(a) for a in anchors], len(instances[i]), self.topk)
            matches.append(torch.where(candidate, kept, match))
        return dense_targets(matches, instances)

    def match(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """The first assignment: candidates by IoU."""
        return iou_assign(torch.cat(list(anchors)), gt_boxes, (self.candidate_iou, self.candidate_iou))

    def candidate_losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, labels: Tensor, gt_boxes: Tensor
    ) -> Tensor:
        """Classification plus localisation loss of each candidate, `[N]` (paper, eq. 4)."""
        onehot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        focal = sigmoid_focal_loss(logits, onehot, self.focal_alpha, self.focal_gamma).sum(dim=1)
        giou = generalized_box_iou_loss(self.decode(deltas, anchors), gt_boxes)
        return self.class_weight * focal + self.box_weight * giou

    def quality_target(self, anchors: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor | None:
        """IoU of the predicted box."""
        return iou_and_giou(pred_boxes, gt_boxes)[0]

    def scores(self, class_scores: Tensor, quality: Tensor | None) -> Tensor:
        """Geometric mean of class and IoU."""
        return super().scores(class_scores, quality).sqrt()
