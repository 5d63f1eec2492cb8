"""The fully convolutional head that one-stage detectors share: two towers, class, box and quality predictors."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from polydet.layers.reduce import mean_over_processes

from .assignment import IGNORED, inside_image
from .postprocess import DenseInference, select_detections
from .structures import DensePredictions, DenseTargets, dense_targets


def conv_tower(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    """`num_convs` times 3x3 convolution, norm, ReLU; weights normal(0, 0.01)."""
    layers = []
    for i in range(num_convs):
        conv = Conv2d(
            in_channels if i == 0 else channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, channels),
            activation=nn.ReLU(),
        )
        nn.init.normal_(conv.weight, std=0.01)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers.append(conv)
    return nn.Sequential(*layers)


class DenseHead(nn.Module):
    """A one-stage head: layers, anchors, losses and inference; a subclass says how anchors are assigned.

    The base predicts deltas of anchors and trains with sigmoid focal loss and GIoU on decoded boxes.
    Subclasses override `match` (or `assign`), and where they differ `decode`, `quality_target` and `scores`.

    Args:
        in_channels: channels of every feature level.
        num_classes: outputs of the class predictor (for an open vocabulary: the embedding's size).
        strides: of the feature levels, pixels.
        num_convs: 3x3 convolutions in each tower (4 in the papers, 1 as an auxiliary head of Co-DETR).
        norm: Detectron2's norm name for the towers, "" for none.
        anchor_scale: anchor side in strides.
        octaves: anchor sizes a location are `anchor_scale * stride * 2^(i / octaves)`.
        anchor_offset: centre of the first anchor in strides (0 in mmdetection's anchor heads, 0.5 for points).
        box_dim: raw outputs of a box.
        has_quality: predict one more logit an anchor, from the box tower.
        level_scale: one learnable factor a level on the box output.
        class_weight, box_weight, quality_weight: loss weights.
        valid_multiple: which anchors count in training, see `inside_image`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int | Sized,
        strides: Sequence[int],
        *,
        channels: int = 256,
        num_convs: int = 4,
        norm: str = "GN",
        anchor_scale: float = 8.0,
        octaves: int = 1,
        aspect_ratios: Sequence[float] = (1.0,),
        anchor_offset: float = 0.0,
        delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        box_dim: int = 4,
        has_quality: bool = True,
        level_scale: bool = True,
        prior_prob: float = 0.01,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        quality_weight: float = 1.0,
        valid_multiple: int = 1,
        inference: DenseInference | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes if isinstance(num_classes, int) else len(num_classes)
        self.strides = tuple(strides)
        self.anchor_scale, self.box_dim = anchor_scale, box_dim
        self.num_anchors = octaves * len(aspect_ratios)
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.class_weight, self.box_weight, self.quality_weight = class_weight, box_weight, quality_weight
        self.valid_multiple = valid_multiple
        self.settings = inference or DenseInference()
        self.box_transform = Box2BoxTransform(weights=delta_weights)
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[anchor_scale * s * 2 ** (i / octaves) for i in range(octaves)] for s in strides],
            aspect_ratios=[list(aspect_ratios)],
            strides=list(strides),
            offset=anchor_offset,
        )
        self.class_tower = conv_tower(in_channels, channels, num_convs, norm)
        self.box_tower = conv_tower(in_channels, channels, num_convs, norm)
        self.class_predictor = nn.Conv2d(channels, self.num_anchors * self.num_classes, 3, padding=1)
        self.box_predictor = nn.Conv2d(channels, self.num_anchors * self.box_dim, 3, padding=1)
        self.quality_predictor = nn.Conv2d(channels, self.num_anchors, 3, padding=1) if has_quality else None
        self.level_scale = nn.Parameter(torch.ones(len(self.strides))) if level_scale else None
        self._reset_predictors(prior_prob)

    def _reset_predictors(self, prior_prob: float) -> None:
        predictors = [self.class_predictor, self.box_predictor]
        for layer in predictors + ([self.quality_predictor] if self.quality_predictor is not None else []):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        prior = -math.log((1 - prior_prob) / prior_prob)
        nn.init.constant_(self.class_predictor.bias, prior)  # type: ignore[arg-type]

    def towers(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """One level `[B, C, H, W]` -> class and box features `[B, channels, H, W]`."""
        return self.class_tower(feature), self.box_tower(feature)

    def forward(self, features: Sequence[Tensor]) -> DensePredictions:
        """Predict on every level.

        Args:
            features: one `[B, C, H_l, W_l]` a stride.

        Raises:
            ValueError: the number of levels differs from the number of strides.
        """
        if len(features) != len(self.strides):
            raise ValueError(f"{len(features)} feature levels for a head built for strides {self.strides}")
        logits, deltas, quality = [], [], []
        for level, feature in enumerate(features):
            class_feature, box_feature = self.towers(feature)
            logits.append(permute_to_N_HWA_K(self.class_predictor(class_feature), self.num_classes))
            raw = self.box_predictor(box_feature)
            if self.level_scale is not None:
                raw = raw * self.level_scale[level]
            deltas.append(permute_to_N_HWA_K(raw, self.box_dim))
            if self.quality_predictor is not None:
                quality.append(permute_to_N_HWA_K(self.quality_predictor(box_feature), 1).squeeze(-1))
        return DensePredictions(logits, deltas, quality)

    def anchors(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of every level, `[H_l * W_l * A, 4]` xyxy pixels."""
        return [boxes.tensor for boxes in self.anchor_generator(list(features))]

    def stride_of(self, anchors: Tensor) -> Tensor:
        """Stride `[N]` of the level of each anchor `[N, 4]`; for heads with one square anchor a location."""
        return (anchors[:, 2] - anchors[:, 0]) / self.anchor_scale

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Raw box outputs `[N, box_dim]` and anchors `[N, 4]` -> boxes `[N, 4]` xyxy pixels, float32."""
        return self.box_transform.apply_deltas(deltas, anchors)

    def match(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """Assign the anchors of one image: per level `[N_l, 4]`, `[G, 4]` -> `[N]` int64, see `assignment`."""
        raise TypeError(f"{type(self).__name__} has no assignment: override match or assign")

    def assign(
        self,
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        instances: Sequence[Instances],
        image_sizes: Sequence[tuple[int, int]],
    ) -> DenseTargets:
        """Assign a batch; anchors centred in the padding are ignored."""
        matches = []
        for target, size in zip(instances, image_sizes):
            valid = [inside_image(level, size, self.valid_multiple) for level in anchors]
            match = torch.full((sum(map(len, anchors)),), IGNORED, device=anchors[0].device)
            kept = [level[mask] for level, mask in zip(anchors, valid)]
            match[torch.cat(valid)] = self.match(kept, target.gt_boxes.tensor)
            matches.append(match)
        return dense_targets(matches, instances)

    def quality_target(self, anchors: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor | None:
        """Targets in 0..1 of the quality branch for positives, all `[P, 4]` -> `[P]`; they weight the box loss."""
        return None

    def class_loss(self, logits: Tensor, targets: DenseTargets) -> Tensor:
        """Sigmoid focal loss over anchors that are not ignored, by the number of positives; `logits` `[B, N, C]`."""
        used = targets.used
        labels, logits = targets.labels[used], logits[used]
        onehot = torch.zeros_like(logits)
        positive = labels >= 0
        onehot[positive, labels[positive]] = 1.0
        loss = sigmoid_focal_loss(logits, onehot, self.focal_alpha, self.focal_gamma, reduction="sum")
        return self.class_weight * loss / mean_over_processes(targets.num_positives)

    def box_losses(self, predictions: DensePredictions, anchors: Tensor, targets: DenseTargets) -> dict[str, Tensor]:
        """GIoU on decoded boxes of positives, weighted by the quality target, and the quality branch's loss."""
        positive = targets.positive
        anchors = anchors.expand(len(positive), -1, 4)[positive]
        gt_boxes = targets.boxes[positive]
        pred_boxes = self.decode(predictions.flat_deltas()[positive], anchors)
        target = self.quality_target(anchors, pred_boxes.detach(), gt_boxes)
        weight = torch.ones_like(gt_boxes[:, 0]) if target is None else target
        giou = (generalized_box_iou_loss(pred_boxes, gt_boxes) * weight).sum()
        losses = {"loss_box": self.box_weight * giou / mean_over_processes(weight.sum())}
        quality = predictions.flat_quality()
        if quality is not None and target is not None:
            loss = F.binary_cross_entropy_with_logits(quality[positive], target, reduction="sum")
            losses["loss_quality"] = self.quality_weight * loss / mean_over_processes(targets.num_positives)
        return losses

    def losses(
        self, predictions: DensePredictions, anchors: Sequence[Tensor], targets: DenseTargets
    ) -> dict[str, Tensor]:
        """Weighted losses `loss_cls`, `loss_box` and, with a quality branch, `loss_quality`."""
        losses = {"loss_cls": self.class_loss(predictions.flat_logits(), targets)}
        losses.update(self.box_losses(predictions, torch.cat(list(anchors)), targets))
        return losses

    def scores(self, class_scores: Tensor, quality: Tensor | None) -> Tensor:
        """Final scores from class probabilities `[N]` and quality probabilities `[N]`."""
        return class_scores if quality is None else class_scores * quality

    @torch.no_grad()
    def inference(
        self,
        predictions: DensePredictions,
        anchors: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Decode, keep the best of each level, class-wise NMS.

        Returns:
            one `Instances` an image with `pred_boxes` (pixels of the network's input), `scores`, `pred_classes`.
        """
        return [
            select_detections(
                [x[i].float() for x in predictions.logits],
                [x[i].float() for x in predictions.deltas],
                [x[i].float() for x in predictions.quality],
                anchors,
                size,
                self,
            )
            for i, size in enumerate(image_sizes)
        ]
