"""Cascade R-CNN and HTC: every stage assigns, embeds and regresses on its own."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from aligndet.adapters.base import BoxSamples, ViewOutput, projector
from aligndet.adapters.rcnn import RCNNAdapter


class CascadeAdapter(RCNNAdapter):
    """One projector and one contrastive loss per stage.

    Args:
        detector: a cascade with one class.
        stage_weights: factor of each stage's contrastive loss; box losses carry their weights in the predictors.
        positives_only, hidden, dim, assistant_weight: see :class:`RCNNAdapter`.
    """

    unused = ("roi_heads.box_predictor.*.cls_score", "roi_heads.mask_head")
    only = {
        "classification": ("proposal_generator.rpn_head.objectness_logits",),
        # later stages look where earlier ones regress to, but no gradient flows through boxes
        "regression": ("proposal_generator.rpn_head.anchor_deltas", "roi_heads.box_predictor.*.bbox_pred"),
    }

    def __init__(
        self,
        detector: GeneralizedRCNN,
        stage_weights: Sequence[float] = (1.0, 0.5, 0.25),
        positives_only: bool = False,
        hidden: int = 1024,
        dim: int = 256,
        assistant_weight: float = 0.5,
    ) -> None:
        if len(stage_weights) != detector.roi_heads.num_cascade_stages:
            raise ValueError(
                f"{len(stage_weights)} stage weights for a cascade of {detector.roi_heads.num_cascade_stages} stages"
            )
        super().__init__(detector, positives_only, hidden, dim, assistant_weight)
        self.stage_weights = tuple(stage_weights)

    def build_projector(self, hidden: int, dim: int) -> None:
        """One projector per stage."""
        self.projector = nn.ModuleList(
            projector(head.output_shape.channels, hidden, dim) for head in self.detector.roi_heads.box_head
        )

    def forward_features(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Instances], with_losses: bool
    ) -> ViewOutput:
        """RPN and all stages on one pyramid."""
        proposals, losses = self.detector.proposal_generator(images, features, targets)
        heads = self.detector.roi_heads
        maps = [features[f] for f in heads.box_in_features]
        proposals = self.positives(heads.label_and_sample_proposals(proposals, targets))
        output = ViewOutput([], dict(losses) if with_losses else {})
        boxes: list[Tensor] = []
        for stage, weight in enumerate(self.stage_weights):
            if stage > 0:
                refined = heads._create_proposals_from_boxes(boxes, images.image_sizes)
                proposals = self.positives(heads._match_and_label_boxes(refined, stage, targets))
            hidden = heads.box_head[stage](heads.box_pooler(maps, [p.proposal_boxes for p in proposals]))
            output.samples.append(BoxSamples(self.projector[stage](hidden), self.labels(proposals), weight))
            predictor = heads.box_predictor[stage]
            predictions = predictor(hidden)
            boxes = predictor.predict_boxes(predictions, proposals)
            if with_losses:
                output.losses[f"loss_box_reg_stage{stage}"] = self.box_loss(predictor, predictions, proposals)
        return output
