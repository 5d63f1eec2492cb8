"""The loss of one branch of predictions: matched queries, encoder proposals, denoising, Co-DETR's positive queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from polydet.layers import cxcywh_to_xyxy, iou_and_giou, mean_over_processes, quality_focal_loss

from .matcher import HungarianMatcher
from .structures import Assignment, Branch, Targets


class ClassLoss(nn.Module):
    """Base class of classification losses over all queries of all layers."""

    def forward(
        self, logits: Tensor, labels: Tensor, quality: Tensor, weight: Tensor | None, normalizer: Tensor
    ) -> Tensor:
        """
        Args:
            logits: ``[L, B, Q, K]``.
            labels: ``[L, B, Q]`` class of the assigned object, -1 for background.
            quality: ``[L, B, Q]`` IoU of box and assigned object, 0 for background; no gradient.
            weight: broadcastable to ``[B, Q, K]``, or None.
            normalizer: 0-d.

        Returns:
            ``[L]``.
        """
        raise TypeError(f"{type(self).__name__} must define forward")


def one_hot(labels: Tensor, value: Tensor, num_classes: int) -> Tensor:
    """`value` ``[...]`` put at its label, 0 elsewhere: ``[..., K]``; labels of -1 give a zero row."""
    target = value.new_zeros(*labels.shape, num_classes)
    filled = torch.where(labels >= 0, value, torch.zeros_like(value))
    return target.scatter_(-1, labels.clamp(min=0)[..., None], filled[..., None])


def _sum_layers(loss: Tensor, weight: Tensor | None, normalizer: Tensor) -> Tensor:
    if weight is not None:
        loss = loss * weight
    return loss.flatten(1).sum(1) / normalizer


class EmbeddingLoss(nn.Module):
    """Base class of losses on queries as unit rows among the texts; each has its weight in it."""

    name: str

    def forward(self, embeddings: Tensor, labels: Tensor, normalizer: Tensor) -> Tensor:
        """
        Args:
            embeddings: ``[L, B, Q, D]`` unit rows.
            labels: ``[L, B, Q]`` class of the assigned object, -1 for background.
            normalizer: 0-d.

        Returns:
            ``[L]``.
        """
        raise TypeError(f"{type(self).__name__} must define forward")


class FocalLoss(ClassLoss):
    """Sigmoid focal loss (RetinaNet), summed over queries and classes, divided by the normaliser."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, logits: Tensor, labels: Tensor, quality: Tensor, weight: Tensor | None, normalizer: Tensor
    ) -> Tensor:
        """See `ClassLoss`."""
        target = one_hot(labels, torch.ones_like(quality), logits.shape[-1])
        loss = sigmoid_focal_loss(logits, target, self.alpha, self.gamma)
        return _sum_layers(loss, weight, normalizer)


class QualityFocalLoss(ClassLoss):
    """Quality focal loss: the target of the assigned class is the IoU of the predicted box (Co-DINO)."""

    def __init__(self, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(
        self, logits: Tensor, labels: Tensor, quality: Tensor, weight: Tensor | None, normalizer: Tensor
    ) -> Tensor:
        """See `ClassLoss`."""
        target = one_hot(labels, quality, logits.shape[-1])
        return _sum_layers(quality_focal_loss(logits, target, self.beta), weight, normalizer)


class SoftmaxLoss(ClassLoss):
    """Cross-entropy with a background class in the last place (DETR).

    Args:
        background_weight: weight of background queries.
        by_weight: divide by the sum of the queries' weights, as DETR does; otherwise by the normaliser.
    """

    def __init__(self, background_weight: float = 0.1, by_weight: bool = True) -> None:
        super().__init__()
        self.background_weight = background_weight
        self.by_weight = by_weight

    def forward(
        self, logits: Tensor, labels: Tensor, quality: Tensor, weight: Tensor | None, normalizer: Tensor
    ) -> Tensor:
        """See `ClassLoss`; `weight` must be the same for all classes of a query (``[B, Q, 1]``)."""
        background = labels < 0
        target = torch.where(background, logits.shape[-1] - 1, labels)
        each = torch.ones_like(quality).masked_fill(background, self.background_weight)
        if weight is not None:
            each = each * weight.expand(*labels.shape[1:], 1)[..., 0]
        loss = each * F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
        divisor = each.flatten(1).sum(1).clamp(min=1e-6) if self.by_weight else normalizer
        return loss.flatten(1).sum(1) / divisor


class Criterion(nn.Module):
    """Weighted classification, L1 and GIoU losses of a `Branch`, at every layer.

    Args:
        class_loss: focal, quality focal or softmax.
        class_weight, box_weight, giou_weight: weights of the three losses.
        branch_weight: further factor for branches by name, e.g. ``{"dn": 1.0}``; 1 for names left out.
        extra: further losses of branches whose predictions have `embeddings`, ``loss_{name}`` by the name of each.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        class_loss: ClassLoss,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        branch_weight: dict[str, float] | None = None,
        extra: Sequence[EmbeddingLoss] = (),
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.extra = nn.ModuleDict({loss.name: loss for loss in extra})
        self.class_loss = class_loss
        self.weights = {"class": class_weight, "bbox": box_weight, "giou": giou_weight}
        self.branch_weight = dict(branch_weight or {})

    def forward(self, branch: Branch) -> dict[str, Tensor]:
        """Weighted scalar losses ``loss_{class, bbox, giou}[_name][_layer]``; the last layer has no number.

        Raises:
            ValueError: from the matcher, for a cost that is not finite.
        """
        device = branch.predictions.boxes.device
        with torch.autocast(device.type, enabled=False):
            dtype = torch.promote_types(branch.predictions.boxes.dtype, torch.float32)
            given = branch.predictions
            predictions = replace(given, logits=given.logits.to(dtype), boxes=given.boxes.to(dtype), hidden=None)
            assignment = branch.assignment
            if assignment is None:
                assignment = self.matcher(predictions, branch.targets)
            normalizer = branch.normalizer
            if normalizer is None:
                normalizer = self._normalizer(branch, len(predictions.boxes), device)
            losses = self.losses(replace(branch, predictions=predictions), assignment, normalizer.to(device, dtype))
        return self._name(losses, branch)

    def losses(self, branch: Branch, assignment: Assignment, normalizer: Tensor) -> dict[str, Tensor]:
        """Unweighted losses, ``[L]`` each."""
        predictions = branch.predictions
        logits, boxes = predictions.logits, predictions.boxes
        rows = (assignment.layer, assignment.image, assignment.query)
        labels, target_boxes = gather_targets(branch.targets, assignment)
        if predictions.classes is not None:  # the one logit of a query is that of its own category
            labels = torch.zeros_like(labels)
        source, target_boxes = boxes[rows], target_boxes.to(boxes.dtype)
        iou, giou = iou_and_giou(cxcywh_to_xyxy(source), cxcywh_to_xyxy(target_boxes))
        assigned = torch.full(boxes.shape[:3], -1, dtype=torch.int64, device=boxes.device)
        assigned[rows] = labels
        quality = boxes.new_zeros(boxes.shape[:3])
        quality[rows] = iou.detach()
        distance = (source - target_boxes).abs().sum(-1)
        layers = torch.arange(len(boxes), device=boxes.device)
        of_layer = assignment.layer[None] == layers[:, None]  # sums without atomics, so a step repeats exactly
        losses = {
            "class": self.class_loss(logits, assigned, quality, branch.class_weight, normalizer),
            "bbox": torch.where(of_layer, distance, 0.0).sum(1) / normalizer,
            "giou": torch.where(of_layer, 1 - giou, 0.0).sum(1) / normalizer,
        }
        if predictions.embeddings is not None:
            embeddings = predictions.embeddings.to(logits.dtype)
            losses.update({name: loss(embeddings, assigned, normalizer) for name, loss in self.extra.items()})
        return losses

    def _normalizer(self, branch: Branch, num_layers: int, device: torch.device) -> Tensor:
        if branch.assignment is None:
            count = float(sum(len(t) for t in branch.targets))
        else:
            count = len(branch.assignment.query) / num_layers
        return mean_over_processes(count, device=device)

    def _name(self, losses: dict[str, Tensor], branch: Branch) -> dict[str, Tensor]:
        suffix = f"_{branch.name}" if branch.name else ""
        factor = self.branch_weight.get(branch.name, 1.0) * branch.factor
        named = {}
        for kind, values in losses.items():
            for layer, value in enumerate((values * (self.weights.get(kind, 1.0) * factor)).unbind()):
                number = f"_{layer}" if layer + 1 < len(values) else ""
                named[f"loss_{kind}{suffix}{number}"] = value
        return named


def gather_targets(targets: Sequence[Targets], assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Labels ``[M]`` and boxes ``[M, 4]`` (cxcywh, normalised) of the assigned objects."""
    counts = torch.tensor([0] + [len(t) for t in targets[:-1]])
    starts = counts.cumsum(0).to(assignment.target.device, non_blocking=True)
    row = starts[assignment.image] + assignment.target
    return torch.cat([t.labels for t in targets])[row], torch.cat([t.boxes for t in targets])[row]
