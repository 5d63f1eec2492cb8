"""What FCOS and RetinaNet share: towers over a pyramid, one label per anchor, sampled locations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from aligndet.adapters.base import BoxSamples, DetectorAdapter, ViewOutput, proposal_of_code, with_proposal_codes


class DenseAdapter(DetectorAdapter):
    """Base of the one-stage adapters.

    Args:
        detector: built with one class.
        num_samples: locations that enter the contrastive loss, positives first, filled with negatives.
        per: whether that number is per image or for all images of the process.
    """

    groups = {
        "neck": ("backbone.fpn_*", "backbone.top_block"),
        "head": ("head",),
    }
    unused = ("head.cls_score",)
    num_anchors = 1

    def __init__(self, detector: DenseDetector, num_samples: int = 2048, per: Literal["image", "batch"] = "image"):
        super().__init__(detector)
        self.num_samples = num_samples
        self.per = per

    def forward(self, views: list[dict[str, Any]], with_losses: bool) -> ViewOutput:
        """See :meth:`DetectorAdapter.forward`."""
        detector = self.detector
        images = detector.preprocess_image(views)
        pyramid = detector.backbone(images.tensor)
        features = [pyramid[f] for f in detector.head_in_features]
        anchors = detector.anchor_generator(features)
        coded = with_proposal_codes(self.targets(views), detector.num_classes)
        labels, boxes = self.assign(anchors, coded, images.image_sizes)
        codes = torch.stack(labels)  # [N, R]
        rows = self.sample(codes)
        maps = [self.embedding_map(detector.head.cls_subnet(feature)) for feature in features]
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # [N, R / A, C]
        image, anchor = rows // codes.shape[1], rows % codes.shape[1]
        embeddings = self.embed(cells[image, anchor // self.num_anchors], anchor % self.num_anchors)
        samples = BoxSamples(embeddings, proposal_of_code(codes.flatten()[rows], detector.num_classes))
        losses: dict[str, Tensor] = {}
        if with_losses:
            # one class: every proposal is an object; the classification loss is not kept
            positive = codes > detector.num_classes
            agnostic = list(torch.where(positive, torch.zeros_like(codes), codes))
            losses = self.own_losses(features, anchors, agnostic, boxes)
        return ViewOutput([samples], losses)

    def assign(
        self, anchors: list[Boxes], coded: list[Instances], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Any]]:
        """The detector's labels and matched boxes of each image's anchors; a batch's padding is background."""
        return self.detector.label_anchors(anchors, coded)

    def sample(self, codes: Tensor) -> Tensor:
        """Rows of ``codes.flatten()`` that enter the contrastive loss, int64 ``[k]``; ``codes [N, R]``."""
        background = self.detector.num_classes
        groups = codes[None].flatten(1) if self.per == "batch" else codes
        rows = []
        for i, group in enumerate(groups):
            positive, negative = subsample_labels(group, self.num_samples, 1.0, background)
            rows.append(torch.cat([positive, negative]) + i * groups.shape[1])
        return torch.cat(rows)

    def embedding_map(self, tower: Tensor) -> Tensor:
        """Dense part of the projector: tower output ``[N, C, H, W]`` -> ``[N, C', H, W]``."""
        return tower

    def embed(self, cells: Tensor, anchor: Tensor) -> Tensor:
        """Pointwise part of the projector, on sampled cells only: ``[k, C']``, anchor of each ``[k]`` -> ``[k, D]``."""
        raise TypeError(f"{type(self).__name__} does not say how to embed")

    def own_losses(self, features: list[Tensor], anchors: list, labels: list[Tensor], boxes: list) -> dict[str, Tensor]:
        """The detector's losses other than classification."""
        raise TypeError(f"{type(self).__name__} does not say which losses to keep")

    @staticmethod
    def flat(maps: list[Tensor], channels: int) -> list[Tensor]:
        """``[N, A * channels, H, W]`` -> ``[N, H * W * A, channels]``, level by level."""
        return [permute_to_N_HWA_K(m, channels) for m in maps]

    def no_logits(self, features: list[Tensor]) -> list[Tensor]:
        """Zero class logits in the shape that the detector's loss function wants."""
        shapes = [(f.shape[0], f.shape[2] * f.shape[3] * self.num_anchors, self.detector.num_classes) for f in features]
        return [f.new_zeros(shape) for f, shape in zip(features, shapes)]


def conv_projector(channels: int) -> nn.Conv2d:
    """3x3 conv, zero bias: the dense layer of a projector."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
