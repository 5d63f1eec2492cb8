"""Backbone plus dense head as a Detectron2 meta-architecture."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor

from .head import DenseHead
from .structures import DensePredictions


@META_ARCH_REGISTRY.register()
class OneStageDetector(DenseDetector):
    """Any `DenseHead` on any backbone; images are RGB in 0..255.

    Args:
        backbone: gives the maps named in `in_features` at the head's strides.
        in_features: names from fine to coarse; all of the backbone's when None.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DenseHead,
        in_features: Sequence[str] | None = None,
        *,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__(
            backbone,
            head,
            list(in_features) if in_features is not None else None,
            pixel_mean=list(pixel_mean),
            pixel_std=list(pixel_std),
        )

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: DensePredictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Weighted losses of the head."""
        anchors = self.head.anchors(features)
        targets = self.head.assign(predictions, anchors, gt_instances, images.image_sizes)
        return self.head.losses(predictions, anchors, targets)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: DensePredictions
    ) -> list[Instances]:
        """Detections in the pixels of the network's input."""
        return self.head.inference(predictions, self.head.anchors(features), images.image_sizes)
