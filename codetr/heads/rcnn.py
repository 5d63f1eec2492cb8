"""Faster and Mask R-CNN as auxiliary heads: Detectron2's RPN and RoI heads (arXiv:1506.01497, 1703.06870)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

from polydet.dense import BACKGROUND, FlooredMatcher, PaddingRPN

from .base import AuxiliaryHead, Coordinates

POOL_SIZE, MASK_POOL_SIZE = 7, 14


@contextmanager
def event_storage() -> Iterator[None]:
    """Detectron2's RPN writes scalars; outside a trainer they go nowhere."""
    try:
        get_event_storage()
    except AssertionError:
        with EventStorage():
            yield
    else:
        yield


def build_rpn(
    in_channels: int,
    strides: Sequence[int],
    proposals_before_nms: tuple[int, int] = (4000, 1000),
    proposals: int = 1000,
    min_quality: float = 0.3,
    select_padding: Literal["always", "training", "never"] = "training",
) -> PaddingRPN:
    """Nine anchors a location, 256 samples an image, NMS 0.7; anchors in padding are left out of the loss.

    Args:
        proposals_before_nms: kept a level in training and at inference.
        proposals: kept an image.
        min_quality: IoU from which the best anchors of an object are positive whatever the thresholds say.
        select_padding: see `PaddingRPN`.
    """
    anchors = DefaultAnchorGenerator(
        sizes=[[4.0 * s * 2 ** (i / 3) for i in range(3)] for s in strides],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=list(strides),
        offset=0.0,
    )
    return PaddingRPN(
        in_features=[str(s) for s in strides],
        head=StandardRPNHead(in_channels=in_channels, num_anchors=9),
        anchor_generator=anchors,
        anchor_matcher=FlooredMatcher([0.3, 0.7], [0, -1, 1], min_quality),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=tuple(proposals_before_nms),
        post_nms_topk=(proposals, proposals),
        select_padding=select_padding,
    )


class RCNNHead(AuxiliaryHead):
    """Proposals and RoI classification; its coordinates are the sampled RoIs, ground truth appended.

    Args:
        strides: of the pyramid; RoIs are pooled from all levels but the coarsest.
        with_mask: add Mask R-CNN's branch, which needs `gt_masks`.
        conv_dims, fc_dims, norm: of the box head (ViT-L uses four convolutions and one layer, GN).
        class_agnostic: one box an RoI instead of one a class.
        box_weight: weight of the GIoU loss on decoded boxes.
        proposals_before_nms, proposals, min_quality, select_padding: see `build_rpn`.
        rois_per_image: sampled in training, a quarter of them positive.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[int],
        *,
        with_mask: bool = False,
        conv_dims: Sequence[int] = (),
        fc_dims: Sequence[int] = (1024, 1024),
        norm: str = "",
        class_agnostic: bool = False,
        delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        box_weight: float = 10.0,
        proposals_before_nms: tuple[int, int] = (4000, 1000),
        proposals: int = 1000,
        min_quality: float = 0.3,
        select_padding: Literal["always", "training", "never"] = "training",
        rois_per_image: int = 512,
        score_threshold: float = 0.0,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.rpn = build_rpn(in_channels, strides, proposals_before_nms, proposals, min_quality, select_padding)
        pooled = [str(s) for s in (strides[:-1] or strides)]
        scales = tuple(1.0 / int(s) for s in pooled)
        box_head = FastRCNNConvFCHead(
            ShapeSpec(channels=in_channels, height=POOL_SIZE, width=POOL_SIZE),
            conv_dims=list(conv_dims),
            fc_dims=list(fc_dims),
            conv_norm=norm,
        )
        predictor = FastRCNNOutputLayers(
            box_head.output_shape,
            box2box_transform=Box2BoxTransform(weights=delta_weights),
            num_classes=num_classes,
            test_score_thresh=score_threshold,
            test_nms_thresh=nms_threshold,
            test_topk_per_image=max_detections,
            cls_agnostic_bbox_reg=class_agnostic,
            box_reg_loss_type="giou",
            loss_weight={"loss_box_reg": box_weight},
        )
        self.roi_heads = StandardROIHeads(
            num_classes=num_classes,
            batch_size_per_image=rois_per_image,
            positive_fraction=0.25,
            proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
            box_in_features=pooled,
            box_pooler=ROIPooler(POOL_SIZE, scales, 0, "ROIAlignV2"),
            box_head=box_head,
            box_predictor=predictor,
            **(self._mask_branch(in_channels, num_classes, pooled, scales) if with_mask else {}),
        )

    @staticmethod
    def _mask_branch(
        in_channels: int, num_classes: int, pooled: list[str], scales: tuple[float, ...]
    ) -> dict[str, Any]:
        return {
            "mask_in_features": pooled,
            "mask_pooler": ROIPooler(MASK_POOL_SIZE, scales, 0, "ROIAlignV2"),
            "mask_head": MaskRCNNConvUpsampleHead(
                ShapeSpec(channels=in_channels, height=MASK_POOL_SIZE, width=MASK_POOL_SIZE),
                num_classes=num_classes,
                conv_dims=[256] * 5,
            ),
        }

    def _named(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        if len(features) != len(self.strides):
            raise ValueError(f"{len(features)} feature levels for a head built for strides {self.strides}")
        return {str(s): x for s, x in zip(self.strides, features)}

    def _images(self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> ImageList:
        return ImageList(features[0], list(sizes))  # the RPN reads the sizes only

    def forward(
        self,
        features: Sequence[Tensor],
        instances: Sequence[Instances],
        image_sizes: Sequence[tuple[int, int]],
    ) -> tuple[dict[str, Tensor], list[Coordinates]]:
        """See `AuxiliaryHead.forward`.

        Raises:
            ValueError: a mask branch, and ground truth without `gt_masks`.
        """
        targets = list(instances)
        if self.roi_heads.mask_on and any(len(t) and not t.has("gt_masks") for t in targets):
            raise ValueError(
                "the mask_rcnn head needs gt_masks, but an image with objects has none; "
                "set the mapper's masks on, or use the faster_rcnn head"
            )
        named = self._named(features)
        with event_storage():
            proposals, losses = self.rpn(self._images(features, image_sizes), named, targets)
            samples = self.roi_heads.label_and_sample_proposals(proposals, targets)
            pooled = self._pool(named, samples)
            predictions = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
            losses.update(self.roi_heads.box_predictor.losses(predictions, samples))
            if self.roi_heads.mask_on:
                losses.update(self.roi_heads._forward_mask(named, samples))
        return losses, self._coordinates(samples, pooled)

    def _pool(self, named: dict[str, Tensor], samples: Sequence[Instances]) -> Tensor:
        maps = [named[f] for f in self.roi_heads.box_in_features]
        return self.roi_heads.box_pooler(maps, [x.proposal_boxes for x in samples])

    def _coordinates(self, samples: Sequence[Instances], pooled: Tensor) -> list[Coordinates]:
        result = []
        for sample, feature in zip(samples, pooled.mean(dim=(2, 3)).split([len(x) for x in samples])):
            boxes = sample.proposal_boxes.tensor
            labels = sample.gt_classes
            result.append(
                Coordinates(
                    boxes,
                    torch.where(labels == self.num_classes, BACKGROUND, labels),
                    sample.gt_boxes.tensor if sample.has("gt_boxes") else boxes,
                    feature,
                    torch.arange(len(boxes), device=boxes.device),
                )
            )
        return result

    def inference(self, features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """See `AuxiliaryHead.inference`. Masks, where there are any, are not predicted."""
        named = self._named(features)
        proposals, _ = self.rpn(self._images(features, image_sizes), named)
        predictions = self.roi_heads.box_predictor(self.roi_heads.box_head(self._pool(named, proposals)))
        return self.roi_heads.box_predictor.inference(predictions, proposals)[0]

    def class_score(self, features: Sequence[Tensor], coordinates: Sequence[Coordinates]) -> Tensor:
        """See `AuxiliaryHead.class_score`."""
        samples = []
        for c in coordinates:
            instances = Instances((0, 0))
            instances.proposal_boxes = Boxes(c.boxes[c.positives])
            samples.append(instances)
        logits, _ = self.roi_heads.box_predictor(self.roi_heads.box_head(self._pool(self._named(features), samples)))
        rows = logits.split([len(x) for x in samples])
        return torch.stack([x.gather(1, c.labels[c.positives][:, None]).sum() for x, c in zip(rows, coordinates)])
