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
        refine: later stages look at the boxes that the stage before regresses to, as in fine-tuning. Published
            pre-training does not: every stage samples the RPN's boxes anew, by its own overlap.
        rpn_weight: factor of the RPN's losses. 1.5 in the published pre-training of CBNetV2, where the losses of
            both pyramids' passes hold the RPN's of both.
        positives_only, hidden, dim, assistant_weight: see :class:`RCNNAdapter`.

    Raises:
        ValueError: another number of weights than stages.
    """

    unused = ("roi_heads.box_predictor.*.cls_score", "roi_heads.mask_head")
    only = {
        "classification": ("proposal_generator.rpn_head.objectness_logits",),
        "regression": ("proposal_generator.rpn_head.anchor_deltas", "roi_heads.box_predictor.*.bbox_pred"),
    }

    def __init__(
        self,
        detector: GeneralizedRCNN,
        stage_weights: Sequence[float] = (1.0, 0.5, 0.25),
        refine: bool = False,
        rpn_weight: float = 1.0,
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
        self.stage_weights, self.refine, self.rpn_weight = tuple(stage_weights), refine, rpn_weight

    def build_projector(self, hidden: int, dim: int) -> None:
        """One projector per stage."""
        self.projector = nn.ModuleList(
            projector(head.output_shape.channels, hidden, dim) for head in self.detector.roi_heads.box_head
        )

    def forward_features(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Instances], with_losses: bool
    ) -> ViewOutput:
        """RPN and all stages on one pyramid."""
        found, losses = self.detector.proposal_generator(images, features, targets)
        heads = self.detector.roi_heads
        maps = [features[f] for f in heads.box_in_features]
        losses = {name: loss * self.rpn_weight for name, loss in losses.items()}
        output = ViewOutput([], losses if with_losses else {})
        boxes: list[Tensor] = []
        for stage, weight in enumerate(self.stage_weights):
            if stage > 0 and self.refine:
                refined = heads._create_proposals_from_boxes(boxes, images.image_sizes)
                proposals = self.positives(heads._match_and_label_boxes(refined, stage, targets))
            else:
                proposals = self.positives(self.sample(found, targets, stage))
            hidden = heads.box_head[stage](heads.box_pooler(maps, [p.proposal_boxes for p in proposals]))
            output.samples.append(BoxSamples(self.projector[stage](hidden), self.labels(proposals), weight))
            predictor = heads.box_predictor[stage]
            predictions = predictor(hidden)
            boxes = predictor.predict_boxes(predictions, proposals)
            if with_losses:
                output.losses[f"loss_box_reg_stage{stage}"] = self.box_loss(predictor, predictions, proposals)
        return output

    def sample(self, proposals: list[Instances], targets: list[Instances], stage: int) -> list[Instances]:
        """Proposals assigned by a stage's matcher and sampled."""
        heads = self.detector.roi_heads
        heads.proposal_matcher = heads.proposal_matchers[stage]  # Detectron2 samples for the first stage only
        try:
            return heads.label_and_sample_proposals(proposals, targets)
        finally:
            heads.proposal_matcher = heads.proposal_matchers[0]
