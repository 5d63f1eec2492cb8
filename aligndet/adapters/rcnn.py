"""Faster and Mask R-CNN: proposals of the RPN are assigned by overlap; the embedding is that of the RoI."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from aligndet.adapters.base import (
    BoxSamples,
    DetectorAdapter,
    ViewOutput,
    projector,
    proposal_of_code,
    with_proposal_codes,
)


class RCNNAdapter(DetectorAdapter):
    """Box head -> 1024, ReLU, 256; RPN losses and box regression as the detector has them.

    Args:
        detector: an R-CNN with one class. A mask head, if there is one, takes no part.
        positives_only: leave unassigned RoIs out, as published; other proposals are negatives enough.
        hidden, dim: channels of the projector.
        assistant_weight: factor of the losses of a composite backbone's assistant maps.
    """

    groups = {
        "neck": ("backbone.fpn_*", "backbone.top_block"),
        "rpn": ("proposal_generator",),
        "head": ("roi_heads",),
    }
    predictors = ("roi_heads.box_predictor", "roi_heads.mask_head.predictor")
    unused = ("roi_heads.box_predictor.cls_score", "roi_heads.mask_head")
    only = {
        "classification": ("proposal_generator.rpn_head.objectness_logits",),
        "regression": ("proposal_generator.rpn_head.anchor_deltas", "roi_heads.box_predictor.bbox_pred"),
    }
    classification_losses = ("loss_rpn_cls",)

    def __init__(
        self,
        detector: GeneralizedRCNN,
        positives_only: bool = True,
        hidden: int = 1024,
        dim: int = 256,
        assistant_weight: float = 0.5,
    ) -> None:
        super().__init__(detector)
        self.positives_only = positives_only
        self.assistant_weight = assistant_weight
        self.build_projector(hidden, dim)

    def build_projector(self, hidden: int, dim: int) -> None:
        """One projector on the box head."""
        self.projector = projector(self.detector.roi_heads.box_head.output_shape.channels, hidden, dim)

    def forward(self, views: list[dict[str, Any]], with_losses: bool) -> ViewOutput:
        """See :meth:`DetectorAdapter.forward`."""
        images = self.detector.preprocess_image(views)
        targets = with_proposal_codes(self.targets(views), self.detector.roi_heads.num_classes)
        maps = self.detector.backbone
        if not hasattr(maps, "forward_pair"):
            return self.forward_features(images, maps(images.tensor), targets, with_losses)
        assistant, lead = maps.forward_pair(images.tensor)
        output = self.forward_features(images, lead, targets, with_losses)
        extra = self.forward_features(images, assistant, targets, with_losses)
        weight = self.assistant_weight
        # before the lead's: the last set is that of the head which predicts
        output.samples[:0] = [BoxSamples(s.embeddings, s.labels, s.weight * weight) for s in extra.samples]
        output.losses.update({f"assistant_{name}": loss * weight for name, loss in extra.losses.items()})
        return output

    def forward_features(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Instances], with_losses: bool
    ) -> ViewOutput:
        """RPN and RoI heads on one pyramid."""
        proposals, losses = self.detector.proposal_generator(images, features, targets)
        heads = self.detector.roi_heads
        proposals = self.positives(heads.label_and_sample_proposals(proposals, targets))
        maps = [features[f] for f in heads.box_in_features]
        hidden = heads.box_head(heads.box_pooler(maps, [p.proposal_boxes for p in proposals]))
        samples = BoxSamples(self.projector(hidden), self.labels(proposals))
        if not with_losses:
            return ViewOutput([samples])
        predictor = heads.box_predictor
        return ViewOutput([samples], {**losses, "loss_box_reg": self.box_loss(predictor, predictor(hidden), proposals)})

    @torch.no_grad()
    def ranked_boxes(self, views: list[dict[str, Any]], limit: int) -> list[Tensor]:
        """Proposals by objectness, regressed by the box head."""
        heads, images = self.detector.roi_heads, self.detector.preprocess_image(views)
        features = self.detector.backbone(images.tensor)
        proposals = [p[:limit] for p in self.detector.proposal_generator(images, features, None)[0]]
        if isinstance(heads.box_predictor, nn.ModuleList):
            return [p.proposal_boxes.tensor for p in proposals]
        maps = [features[f] for f in heads.box_in_features]
        hidden = heads.box_head(heads.box_pooler(maps, [p.proposal_boxes for p in proposals]))
        return list(heads.box_predictor.predict_boxes(heads.box_predictor(hidden), proposals))

    def positives(self, proposals: list[Instances]) -> list[Instances]:
        """Without the unassigned ones, where that is asked for."""
        if not self.positives_only:
            return proposals
        return [p[p.gt_classes > self.detector.roi_heads.num_classes] for p in proposals]

    def labels(self, proposals: list[Instances]) -> Tensor:
        """Proposal index of every RoI, ``[n]``."""
        codes = torch.cat([p.gt_classes for p in proposals])
        return proposal_of_code(codes, self.detector.roi_heads.num_classes)

    def box_loss(self, predictor: Any, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Tensor:
        """The predictor's own box regression loss, every proposal being an object of the one class."""
        background = self.detector.roi_heads.num_classes
        for p in proposals:
            p.gt_classes = torch.where(p.gt_classes > background, torch.zeros_like(p.gt_classes), p.gt_classes)
        return predictor.losses(predictions, proposals)["loss_box_reg"]
