"""What an auxiliary head gives to the collaborative training: weighted losses and assigned coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from polydet.dense import BACKGROUND, DenseHead, DensePredictions, inside_image


@dataclass(frozen=True)
class Coordinates:
    """Candidate coordinates of one head in one image after its assignment (eq. 1).

    Attributes:
        boxes: `[N, 4]` xyxy pixels: anchors (zeros in a batch's padding, as in the released code), proposals, or boxes
            around FCOS points.
        labels: `[N]` class, `BACKGROUND` or `IGNORED`.
        targets: `[N, 4]` xyxy pixels, the assigned object of positives.
        features: `[T, C]` encoder tokens or RoI features, with gradient.
        feature_index: `[N]` row of `features` for each coordinate.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    features: Tensor
    feature_index: Tensor

    @property
    def positives(self) -> Tensor:
        """Indices `[M]` of coordinates assigned to an object."""
        return (self.labels >= 0).nonzero().squeeze(1)

    @property
    def negatives(self) -> Tensor:
        """Indices of background coordinates."""
        return (self.labels == BACKGROUND).nonzero().squeeze(1)

    @property
    def others(self) -> Tensor:
        """Indices of everything that is not positive: background, ignored, in the padding."""
        return (self.labels < 0).nonzero().squeeze(1)


class AuxiliaryHead(nn.Module):
    """A one-to-many head on the encoder's pyramid."""

    def forward(
        self,
        features: Sequence[Tensor],
        instances: Sequence[Instances],
        image_sizes: Sequence[tuple[int, int]],
    ) -> tuple[dict[str, Tensor], list[Coordinates]]:
        """Train on one batch.

        Args:
            features: pyramid, one `[B, C, H_l, W_l]` a level, fine to coarse.
            instances: ground truth in the pixels of the network's input.
            image_sizes: height, width before padding.

        Returns:
            weighted losses (before lambda_2), and the assignment of each image.
        """
        raise TypeError(f"{type(self).__name__} must implement forward")

    def inference(self, features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """Detections of this branch alone (table 11), in the pixels of the network's input."""
        raise TypeError(f"{type(self).__name__} must implement inference")

    def class_score(self, features: Sequence[Tensor], coordinates: Sequence[Coordinates]) -> Tensor:
        """Summed class logits of the positives at their assigned class, what Grad-CAM differentiates.

        Returns:
            `[B]`, one sum an image.
        """
        raise TypeError(f"{type(self).__name__} must implement class_score")


class DenseAuxiliaryHead(AuxiliaryHead):
    """Any `DenseHead` as an auxiliary head; its coordinates are its anchors."""

    def __init__(self, head: DenseHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        features: Sequence[Tensor],
        instances: Sequence[Instances],
        image_sizes: Sequence[tuple[int, int]],
    ) -> tuple[dict[str, Tensor], list[Coordinates]]:
        """See `AuxiliaryHead.forward`."""
        predictions: DensePredictions = self.head(features)
        anchors = self.head.anchors(features)
        targets = self.head.assign(predictions, anchors, instances, image_sizes)
        losses = self.head.losses(predictions, anchors, targets)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in features], dim=1)
        flat = torch.cat(anchors)
        index = torch.arange(len(flat), device=flat.device) // self.head.num_anchors
        coordinates = []
        for i, (labels, size) in enumerate(zip(targets.labels, image_sizes)):
            boxes = flat * inside_image(flat, size)[:, None]
            coordinates.append(Coordinates(boxes, labels, targets.boxes[i], tokens[i], index))
        return losses, coordinates

    def inference(self, features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """See `AuxiliaryHead.inference`."""
        return self.head.inference(self.head(features), self.head.anchors(features), image_sizes)

    def class_score(self, features: Sequence[Tensor], coordinates: Sequence[Coordinates]) -> Tensor:
        """See `AuxiliaryHead.class_score`."""
        logits = self.head(features).flat_logits()
        return torch.stack([x[c.positives, c.labels[c.positives]].sum() for x, c in zip(logits, coordinates)])
