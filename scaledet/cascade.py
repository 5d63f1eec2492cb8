"""Second stage: Detectron2's three-stage cascade with text classifiers."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from scaledet.classifier import TextFastRCNNOutput
from scaledet.label_loss import LabelLoss, count_normaliser


class TextCascadeROIHeads(CascadeROIHeads):
    """Cascade R-CNN heads (Detic's settings) whose classifier compares regions with text embeddings.

    Heads and losses run in float32 whatever autocast the caller is in.

    Args:
        label_loss: the language loss (eq. 8).
        text_dim: D of the text encoder.
        in_features, strides, in_channels: pyramid levels that regions are pooled from.
        pooler_resolution: side of a pooled region.
        fc_dims: widths of the box head's linear layers.
        ious: foreground threshold of each stage.
        box_weights: weights of (dx, dy) and (dw, dh) of each stage.
        batch_size_per_image, positive_fraction: regions sampled for training; ground truth is among the candidates.
        use_bias: see ``TextFastRCNNOutput``.
        test_score_thresh, test_nms_thresh, test_topk_per_image: inference.
    """

    def __init__(
        self,
        *,
        label_loss: LabelLoss,
        text_dim: int,
        in_features: Sequence[str] = ("p3", "p4", "p5"),
        strides: Sequence[int] = (8, 16, 32),
        in_channels: int = 256,
        pooler_resolution: int = 7,
        fc_dims: Sequence[int] = (1024, 1024),
        ious: Sequence[float] = (0.6, 0.7, 0.8),
        box_weights: Sequence[Sequence[float]] = ((10.0, 5.0), (20.0, 10.0), (30.0, 15.0)),
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        use_bias: float = 0.0,
        test_score_thresh: float = 0.02,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 300,
    ) -> None:
        pooled = ShapeSpec(channels=in_channels, height=pooler_resolution, width=pooler_resolution)
        super().__init__(
            num_classes=1,  # set_labels() sets it
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            box_in_features=list(in_features),
            box_pooler=ROIPooler(
                output_size=pooler_resolution,
                scales=tuple(1.0 / stride for stride in strides),
                sampling_ratio=0,
                pooler_type="ROIAlignV2",
            ),
            box_heads=[FastRCNNConvFCHead(pooled, conv_dims=[], fc_dims=list(fc_dims)) for _ in ious],
            box_predictors=[
                TextFastRCNNOutput(
                    fc_dims[-1],
                    text_dim,
                    (xy, xy, wh, wh),
                    use_bias,
                    label_loss.tau,
                    test_score_thresh,
                    test_nms_thresh,
                    test_topk_per_image,
                )
                for xy, wh in box_weights
            ],
            proposal_matchers=[Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in ious],
        )
        self.label_loss = label_loss
        self.text_dim = text_dim
        self.register_buffer("vocabulary", None, persistent=False)

    def set_labels(self, text: Tensor, **labels: Any) -> None:
        """Take the joint labels to train on and to predict until ``set_vocabulary``; see ``LabelLoss.set_labels``.

        Raises:
            ValueError: embeddings of another width than ``text_dim``.
        """
        self.set_vocabulary(text)
        self.label_loss.set_labels(text, **labels)
        self.num_classes = len(text)
        for predictor in self.box_predictor:
            predictor.num_classes = len(text)

    def set_vocabulary(self, text: Tensor) -> None:
        """Predict the classes of ``text [m, D]`` (unit rows) from now on; training keeps its labels.

        Raises:
            ValueError: embeddings of another width than ``text_dim``.
        """
        if text.shape[1] != self.text_dim:
            raise ValueError(
                f"text embeddings have {text.shape[1]} dimensions, the classifiers {self.text_dim}: "
                f"set model.roi_heads.text_dim={text.shape[1]} or use the encoder the model was built for"
            )
        self.vocabulary = text

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        image_labels: Sequence[Tensor | None] = (),
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See ``ROIHeads.forward``.

        Args:
            image_labels: labels that count for each image (``LabelLoss.image_labels``); empty for all.
        """
        features = {name: features[name].float() for name in self.box_in_features}
        with torch.autocast(features[self.box_in_features[0]].device.type, enabled=False):
            if not self.training:
                return self._forward_box(features, proposals), {}
            proposals = self.label_and_sample_proposals(proposals, targets)
            return proposals, self._forward_box(features, proposals, targets, image_labels)

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        image_labels: Sequence[Tensor | None] = (),
    ) -> Any:
        """Losses in training; otherwise detections: last stage's boxes, scores ``sqrt(mean_k s_k * objectness)``."""
        maps = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        objectness = [p.objectness_logits for p in proposals] if not self.training else []
        losses: dict[str, Tensor] = {}
        scores = 0.0
        boxes: Sequence[Tensor] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(maps, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            if self.training:
                for name, loss in self._stage_losses(stage, predictions, proposals, image_labels).items():
                    losses[f"{name}_stage{stage}"] = loss
            else:
                scores = scores + self._probabilities(predictions[0], stage) / self.num_cascade_stages
        if self.training:
            return losses
        # the empty last column is the background that Detectron2's inference drops
        joint = torch.nn.functional.pad((scores * torch.cat(objectness)[:, None]).sqrt(), (0, 1))
        predictor = self.box_predictor[-1]
        results, _ = fast_rcnn_inference(
            boxes,
            joint.split([len(b) for b in boxes]),
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return results

    def _create_proposals_from_boxes(self, boxes: Sequence[Tensor], image_sizes: Any) -> list[Instances]:
        """Detectron2's, which dies of a box that is not finite: here such boxes become empty, training leaves them out
        as all empty ones, and the trainer sees the loss that is not finite with them, names it and saves the step."""
        finite = [torch.where(torch.isfinite(b).all(1, keepdim=True), b, 0.0) for b in boxes]
        return super()._create_proposals_from_boxes(finite, image_sizes)

    def _probabilities(self, visual: Tensor, stage: int) -> Tensor:
        return self.box_predictor[stage].cls_score.logits(visual, self.vocabulary).sigmoid()

    def _stage_losses(
        self,
        stage: int,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        image_labels: Sequence[Tensor | None],
    ) -> dict[str, Tensor]:
        visual, deltas = predictions
        predictor = self.box_predictor[stage]
        labels = torch.cat([p.gt_classes for p in proposals])
        start = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # an image without objects has no gt_boxes; its regions are background, so any box will do
        goal = torch.cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        losses = self.label_loss(visual, labels, predictor.cls_score.bias, [len(p) for p in proposals], image_labels)
        # Detectron2 divides by this process's regions; count the regions of all processes instead
        regions = count_normaliser([len(labels)], visual.device)[0]
        box_loss = predictor.box_reg_loss(start, goal, deltas, labels) * max(len(labels), 1)
        losses["loss_box_reg"] = box_loss / regions
        self._log_accuracy(stage, visual, labels)
        return losses

    @torch.no_grad()
    def _log_accuracy(self, stage: int, visual: Tensor, labels: Tensor) -> None:
        """Share of foreground regions whose label is nearest; equal names of several datasets tie: either is right."""
        fg = labels < self.num_classes
        if bool(fg.any()):
            cosines = visual[fg] @ self.label_loss.text.T
            own = cosines.gather(1, labels[fg, None]).squeeze(1)
            accuracy = (own >= cosines.amax(1) - 1e-5).float().mean().item()
            get_event_storage().put_scalar(f"stage{stage}/fg_cls_accuracy", accuracy)
