"""FCOS: a point is assigned to the smallest proposal around it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from torch import Tensor, nn

from aligndet.adapters.dense import DenseAdapter, conv_projector


class FCOSAdapter(DenseAdapter):
    """Classification tower -> 3x3 conv, ReLU, 1x1 conv; IoU and centerness losses as the detector has them.

    Args:
        detector: FCOS with one class and, as published, ``center_sampling_radius=inf``.
        num_samples: sampled points of all images of the process.
        dim: channels of the embedding.
    """

    predictors = ("head.cls_score", "head.bbox_pred", "head.ctrness")
    only = {
        "classification": ("head.cls_subnet",),
        "regression": ("head.bbox_subnet", "head.bbox_pred", "head.ctrness"),
    }

    def __init__(self, detector: FCOS, num_samples: int = 2048, dim: int = 256) -> None:
        super().__init__(detector, num_samples, per="batch")
        channels = detector.head.cls_score.in_channels
        self.projector = nn.Sequential(conv_projector(channels), nn.ReLU(inplace=True), nn.Linear(channels, dim))
        nn.init.kaiming_uniform_(self.projector[2].weight, a=1)
        nn.init.zeros_(self.projector[2].bias)

    def embedding_map(self, tower: Tensor) -> Tensor:
        """3x3 conv and ReLU."""
        return self.projector[1](self.projector[0](tower))

    def embed(self, cells: Tensor, anchor: Tensor) -> Tensor:
        """1x1 conv, as a linear layer of the sampled points."""
        return self.projector[2](cells)

    @torch.no_grad()
    def ranked_boxes(self, views: list[dict[str, Any]], limit: int) -> list[Tensor]:
        """Boxes of the points of highest centerness."""
        detector = self.detector
        images = detector.preprocess_image(views)
        pyramid = detector.backbone(images.tensor)
        features = [pyramid[f] for f in detector.head_in_features]
        towers = [detector.head.bbox_subnet(f) for f in features]
        deltas = torch.cat(self.flat([detector.head.bbox_pred(t) for t in towers], 4), dim=1)
        scores = torch.cat(self.flat([detector.head.ctrness(t) for t in towers], 1), dim=1)[..., 0]
        anchors = Boxes.cat(detector.anchor_generator(features)).tensor
        best = scores.topk(min(limit, scores.shape[1]), dim=1).indices
        return [detector.box2box_transform.apply_deltas(d[i], anchors[i]) for d, i in zip(deltas, best)]

    def own_losses(self, features: list[Tensor], anchors: list, labels: list[Tensor], boxes: list) -> dict[str, Tensor]:
        """Box and centerness losses."""
        head = self.detector.head
        towers = [head.bbox_subnet(f) for f in features]
        deltas = self.flat([head.bbox_pred(t) for t in towers], 4)
        centerness = self.flat([head.ctrness(t) for t in towers], 1)
        with torch.autocast(features[0].device.type, enabled=False):
            losses = self.detector.losses(
                anchors,
                [x.float() for x in self.no_logits(features)],
                labels,
                [x.float() for x in deltas],
                boxes,
                [x.float() for x in centerness],
            )
        return {"loss_fcos_loc": losses["loss_fcos_loc"], "loss_fcos_ctr": losses["loss_fcos_ctr"]}
