"""ATSS whose classification branch embeds anchors, beginning with a deformable convolution (section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from detclipv2.deform import deformable_conv
from polydet.dense import ATSSHead, DensePredictions, DenseTargets
from polydet.layers import prior_bias
from polydet.text import TextSimilarity


class DeformableModule(nn.Module):
    """Modulated deformable convolution whose offsets and mask come from other features.

    Args:
        channels: of both inputs and of the output.
        norm: Detectron2's norm name.
    """

    def __init__(self, channels: int, norm: str = "GN") -> None:
        super().__init__()
        self.offsets = Conv2d(channels, 27, kernel_size=3, padding=1)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels)) if not norm else None
        nn.init.kaiming_uniform_(self.weight, a=1)
        self.norm = get_norm(norm, channels)

    def forward(self, feature: Tensor, guide: Tensor) -> Tensor:
        """Sample `feature` where `guide` says, both `[B, C, H, W]`; gradients flow into both.

        Starts as a 3x3 convolution of `feature` with every tap at half weight.
        """
        raw = self.offsets(guide)
        with torch.autocast(raw.device.type, enabled=False):  # torchvision's kernel wants one dtype
            out = deformable_conv(
                feature.float(),
                raw[:, :18].float(),
                raw[:, 18:].float().sigmoid(),
                self.weight.float(),
                None if self.bias is None else self.bias.float(),
            )
        out = out.to(raw.dtype)
        return torch.relu(out if self.norm is None else self.norm(out))


class AlignmentHead(ATSSHead):
    """ATSS that gives an embedding instead of class logits: `DensePredictions.logits` are `[B, N_l, D]`.

    `similarity` turns them into logits against any texts. The texts have unit rows; the region embeddings are either
    as they come and a learned bias is added (`bias`), or unit rows too with a learned scale and bias (`cosine`). The
    bias starts at the focal prior and belongs to the detection losses only.

    Args:
        in_channels: of the feature levels.
        dim: of the embeddings.
        strides: see `DenseHead`.
        deformable: begin the classification branch with a `DeformableModule`.
        similarity: see above; the paper states neither.
        others: see `ATSSHead`.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        strides: Sequence[int],
        *,
        deformable: bool = True,
        similarity: str = "bias",
        prior_prob: float = 0.01,
        channels: int = 256,
        norm: str = "GN",
        **kw: Any,
    ) -> None:
        if similarity not in ("bias", "cosine"):
            raise ValueError(f"similarity must be 'bias' or 'cosine', not {similarity!r}")
        if deformable and in_channels != channels:
            raise ValueError(f"the deformable module needs in_channels={in_channels} equal to channels={channels}")
        super().__init__(in_channels, dim, strides, prior_prob=prior_prob, channels=channels, norm=norm, **kw)
        nn.init.zeros_(self.class_predictor.bias)  # type: ignore[arg-type]
        self.deformable = DeformableModule(channels, norm) if deformable else None
        cosine = similarity == "cosine"
        scale = 20.0 if cosine else 1.0
        self.words = TextSimilarity(cosine, scale, learn_scale=cosine, bias=prior_bias(prior_prob))

    def towers(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.towers`; the box tower steers where the class tower looks."""
        box_feature = self.box_tower(feature)
        if self.deformable is not None:
            feature = self.deformable(feature, box_feature)
        return self.class_tower(feature), box_feature

    def forward(self, features: Sequence[Tensor]) -> DensePredictions:
        """See `DenseHead.forward`; `logits` are embeddings."""
        predictions = super().forward(features)
        embeddings = [self.words.embed(x) for x in predictions.logits]
        return DensePredictions(embeddings, predictions.deltas, predictions.quality)

    def similarity(self, predictions: DensePredictions, texts: Tensor) -> DensePredictions:
        """Logits against texts in place of embeddings.

        Args:
            texts: `[C, D]` unit rows.

        Returns:
            the predictions with `logits` `[B, N_l, C]`.
        """
        logits = [self.words.logits(x, texts) for x in predictions.logits]
        return DensePredictions(logits, predictions.deltas, predictions.quality)

    def localisation_losses(
        self, predictions: DensePredictions, anchors: Sequence[Tensor], targets: DenseTargets
    ) -> dict[str, Tensor]:
        """`loss_box` (GIoU weighted by centerness) and `loss_quality` (centerness)."""
        return self.box_losses(predictions, torch.cat(list(anchors)), targets)
