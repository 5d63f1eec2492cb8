"""Hybrid Task Cascade without its semantic branch, and supervision of a composite backbone's assistant (CBNetV2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from polydet.layers import linear_soft_nms


class HTCMaskHead(MaskRCNNConvUpsampleHead):
    """Mask head that also reads the features of the head before it, through a 1x1 conv ("mask information flow").

    Args:
        flow: whether there is a head before it.
        input_shape, num_classes, conv_dims, conv_norm, kwargs: of Detectron2's head.
    """

    def __init__(
        self,
        input_shape: Any,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str = "",
        flow: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, num_classes=num_classes, conv_dims=list(conv_dims), conv_norm=conv_norm, **kwargs)
        self.flow: nn.Module | None = None
        if flow:
            self.flow = nn.Sequential(nn.Conv2d(conv_dims[0], input_shape.channels, 1), nn.ReLU(inplace=True))

    def features(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """RoI features ``[n, C, s, s]`` and those of the previous head -> this head's ``[n, C', s, s]``."""
        if previous is not None and self.flow is not None:
            x = x + self.flow(previous)
        for conv in self.conv_norm_relus:
            x = conv(x)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """``[n, C', s, s]`` -> mask logits ``[n, K, 2s, 2s]``."""
        return self.predictor(self.deconv_relu(self.deconv(features)))


class HTCROIHeads(CascadeROIHeads):
    """Cascade in which every stage predicts masks, on the boxes that the stage has just refined.

    Weights of the stages are those of the predictors and mask heads (``loss_weight``).

    Args:
        mask_in_features, mask_pooler, mask_heads: one :class:`HTCMaskHead` per stage; without them a plain cascade.
        soft_nms_iou: linear soft-NMS at this overlap instead of NMS; None keeps the predictors' NMS.
        kwargs: of Detectron2's :class:`CascadeROIHeads`.
    """

    def __init__(
        self,
        *,
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_heads: Sequence[HTCMaskHead] = (),
        soft_nms_iou: float | None = None,
        **kwargs: Any,
    ) -> None:
        mask = {}
        if mask_heads:
            mask = {
                "mask_in_features": list(mask_in_features or ()),
                "mask_pooler": mask_pooler,
                "mask_head": nn.ModuleList(mask_heads),
            }
        super().__init__(**mask, **kwargs)
        self.soft_nms_iou = soft_nms_iou

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances] | None = None
    ) -> Any:
        maps = [features[f] for f in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        losses: dict[str, Tensor] = {}
        scores: list[list[Tensor]] = []
        for stage in range(self.num_cascade_stages):
            predictor = self.box_predictor[stage]
            pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
            predictions = predictor(self.box_head[stage](pooled))
            boxes = predictor.predict_boxes(predictions, proposals)
            if targets is None:
                scores.append(list(predictor.predict_probs(predictions, proposals)))
            else:
                for name, loss in predictor.losses(predictions, proposals).items():
                    losses[f"{name}_stage{stage}"] = loss
            if targets is not None and self.mask_on:
                refined = self._assign(boxes, sizes, targets, stage)
                losses[f"loss_mask_stage{stage}"] = self._mask_loss(features, refined, stage)
            if stage + 1 < self.num_cascade_stages:
                if targets is None:
                    proposals = self._create_proposals_from_boxes(boxes, sizes)
                else:
                    proposals = self._assign(boxes, sizes, targets, stage + 1)
        if targets is not None:
            return losses
        mean = [torch.stack(per_image).mean(0) for per_image in zip(*scores)]
        return self._detections(boxes, mean, sizes)

    @torch.no_grad()
    def _assign(
        self, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]], targets: Sequence[Instances], stage: int
    ) -> list[Instances]:
        """Refined boxes as proposals with the targets of a stage, masks included."""
        proposals = self._create_proposals_from_boxes(boxes, sizes)
        for proposal, target in zip(proposals, targets):
            if len(target) == 0:
                proposal.gt_classes = torch.full((len(proposal),), self.num_classes, device=boxes[0].device)
                proposal.gt_boxes = Boxes(proposal.proposal_boxes.tensor.clone())
                continue
            index, label = self.proposal_matchers[stage](pairwise_iou(target.gt_boxes, proposal.proposal_boxes))
            for name, value in target.get_fields().items():
                if name.startswith("gt_"):
                    proposal.set(name, value[index])
            proposal.gt_classes = torch.where(label == 0, self.num_classes, proposal.gt_classes)
        return proposals

    def _mask_loss(self, features: dict[str, Tensor], proposals: list[Instances], stage: int) -> Tensor:
        chosen, _ = select_foreground_proposals(proposals, self.num_classes)
        hidden = self._mask_features(features, [p.proposal_boxes for p in chosen], stage)[-1]
        head = self.mask_head[stage]
        return mask_rcnn_loss(head.logits(hidden), chosen) * head.loss_weight

    def _mask_features(self, features: dict[str, Tensor], boxes: list[Boxes], stage: int) -> list[Tensor]:
        """Features of the mask heads up to a stage, each fed by the one before."""
        pooled = self.mask_pooler([features[f] for f in self.mask_in_features], boxes)
        hidden: list[Tensor] = []
        for head in self.mask_head[: stage + 1]:
            hidden.append(head.features(pooled, hidden[-1] if hidden else None))
        return hidden

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """Masks at inference, averaged over the stages; in training they are part of the stages."""
        if self.training:
            return {}
        if not self.mask_on:
            return instances
        hidden = self._mask_features(features, [x.pred_boxes for x in instances], len(self.mask_head) - 1)
        mean = torch.stack([head.logits(h).sigmoid() for head, h in zip(self.mask_head, hidden)]).mean(0)
        mask_rcnn_inference(torch.logit(mean.float(), eps=1e-6), instances)
        return instances

    def _detections(
        self, boxes: Sequence[Tensor], scores: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        last = self.box_predictor[-1]
        limit, threshold = last.test_topk_per_image, last.test_score_thresh
        nms = last.test_nms_thresh if self.soft_nms_iou is None else 1.0
        # with soft-NMS nothing is suppressed or cut here
        keep = limit if self.soft_nms_iou is None else -1
        found, _ = fast_rcnn_inference(list(boxes), list(scores), list(sizes), threshold, nms, keep)
        if self.soft_nms_iou is None:
            return found
        return [self._soften(instances, limit) for instances in found]

    def _soften(self, instances: Instances, limit: int) -> Instances:
        """The best ``limit`` after soft-NMS."""
        index, scores = linear_soft_nms(
            instances.pred_boxes.tensor, instances.scores, instances.pred_classes, self.soft_nms_iou
        )
        kept = instances[index[:limit]]
        kept.scores = scores[:limit]
        return kept


@META_ARCH_REGISTRY.register()
class CompositeRCNN(GeneralizedRCNN):
    """R-CNN on a composite backbone: the assistant's pyramid is supervised by the same heads (CBNetV2, section 3.3).

    Args:
        assistant_weight: factor of the assistant's losses; they vanish at inference, as does its pyramid.
        kwargs: of Detectron2's :class:`GeneralizedRCNN`, the backbone being a ``CBNetFPN``.
    """

    def __init__(self, *, assistant_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.assistant_weight = assistant_weight

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's contract."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        assistant, lead = self.backbone.forward_pair(images.tensor)
        losses = {}
        for prefix, weight, features in (("", 1.0, lead), ("assistant_", self.assistant_weight, assistant)):
            proposals, own = self.proposal_generator(images, features, targets)
            _, more = self.roi_heads(images, features, proposals, targets)
            losses.update({f"{prefix}{name}": loss * weight for name, loss in {**own, **more}.items()})
        return losses
