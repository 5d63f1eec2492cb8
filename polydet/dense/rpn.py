"""Detectron2's region proposal network with what mmdetection does otherwise, as options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor

from .assignment import inside_image


class FlooredMatcher(Matcher):
    """Detectron2's matcher whose low-quality matches have a floor (`min_pos_iou` of mmdetection's MaxIoUAssigner).

    The best predictions of every object are positive, whatever their quality, from `min_quality` on, and answer for
    that object, the later one where two claim them. Detectron2 has no floor, so that an object smaller than every
    anchor makes positives of all anchors around it, and leaves them their own best object.

    Args:
        thresholds, labels: as Detectron2's.
        min_quality: 0.3 in the RPNs of mmdetection.
    """

    def __init__(self, thresholds: Sequence[float], labels: Sequence[int], min_quality: float = 0.3) -> None:
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.min_quality = min_quality

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Qualities ``[G, N]`` to the object ``[N]`` (int64) and the label ``[N]`` (int8) of each prediction."""
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel() == 0:
            return matches, labels
        best = match_quality_matrix.max(dim=1, keepdim=True).values
        claimed = (match_quality_matrix == best) & (best >= self.min_quality)  # [G, N]
        last = len(best) - 1 - claimed.flip(0).to(torch.uint8).argmax(dim=0)
        any_claim = claimed.any(dim=0)
        return torch.where(any_claim, last, matches), torch.where(any_claim, 1, labels)


class PaddingRPN(RPN):
    """A region proposal network that knows a batch's padding; an anchor lies in it with its centre.

    Args:
        ignore_padding: anchors in padding are left out of the loss and the matching (mmdetection); False: they are
            background (Detectron2).
        valid_multiple: they begin where the image's size ends, rounded up to a multiple of this: 32 where a pipeline of
            mmdetection pads every image to a multiple of 32.
        select_padding: when anchors in padding propose: "always" (both codebases), "training" or "never".
        kwargs: of Detectron2's RPN.
    """

    def __init__(
        self,
        *,
        ignore_padding: bool = True,
        valid_multiple: int = 1,
        select_padding: Literal["always", "training", "never"] = "training",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if select_padding not in ("always", "training", "never"):
            raise ValueError(f"select_padding must be always, training or never, got {select_padding!r}")
        self.ignore_padding, self.valid_multiple = ignore_padding, valid_multiple
        self.select_padding = select_padding

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (-1 ignored, 0 background, 1 object) and boxes of the matched objects, of each image's anchors."""
        if not self.ignore_padding:
            return super().label_and_sample_anchors(anchors, gt_instances)
        every = Boxes.cat(anchors)
        labels, boxes = [], []
        for target in gt_instances:
            inside = inside_image(every.tensor, target.image_size, self.valid_multiple)
            quality = retry_if_cuda_oom(pairwise_iou)(target.gt_boxes, every)
            quality = quality.masked_fill(~inside.to(quality.device), 0.0)  # no object's best anchor either
            index, label = retry_if_cuda_oom(self.anchor_matcher)(quality)
            label = label.to(inside.device).masked_fill(~inside, -1)
            labels.append(self._subsample_labels(label))
            matched = target.gt_boxes.tensor[index.to(inside.device)] if len(target) else torch.zeros_like(every.tensor)
            boxes.append(matched)
        return labels, boxes

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best proposals of each image, see Detectron2's RPN."""
        if self.select_padding == "never" or (self.select_padding == "training" and not self.training):
            pred_objectness_logits = [
                self._without_padding(boxes.tensor, logits, image_sizes)
                for boxes, logits in zip(anchors, pred_objectness_logits)
            ]
        return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)

    def _without_padding(self, anchors: Tensor, logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Logits ``[B, N]`` of a level's anchors, so low in padding that they come last or not at all."""
        inside = torch.stack([inside_image(anchors, size) for size in sizes])
        # inference drops what is not finite, training stops at it
        low = torch.finfo(logits.dtype).min if self.training else float("-inf")
        return logits.masked_fill(~inside, low)
