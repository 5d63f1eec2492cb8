"""An auxiliary head trained alone on the encoder, in place of the decoder (table 11, K = 0; figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from .collaborators import image_sizes
from .meta_arch import CoDETR


@META_ARCH_REGISTRY.register()
class EncoderDetector(CoDETR):
    """Backbone, encoder, adapter and one head. Built from a Co-DETR's arguments, so that a row only changes the target.

    Args:
        heads: exactly one, see `Collaborators`; its loss has weight 1.
        base: arguments of `CoDETR`; queries, decoder and denoising are dropped.

    Raises:
        ValueError: not exactly one head.
    """

    def __init__(self, *, heads: Sequence[str | Mapping[str, Any]], **base: Any) -> None:
        if len(heads) != 1:
            raise ValueError(f"an encoder detector has one head, got {list(heads)}")
        super().__init__(heads=heads, **{**base, "eval_branch": 0})
        assert self.collaborators is not None
        self.collaborators.queries = None
        del self.queries, self.decoder, self.denoising, self.class_heads, self.box_heads, self.criterion

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract, see `DETR.forward`."""
        if not self.training:
            return self.detect(batched_inputs)
        self.prepare_targets(batched_inputs)  # refuses boxes and labels that cannot be right
        images = self.preprocess(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        parts = self.collaborators
        assert parts is not None
        pyramid = parts.adapter(self.encode(images).maps())
        losses: dict[str, Tensor] = parts.assign(0, pyramid, instances, image_sizes(images))[0]
        return losses
