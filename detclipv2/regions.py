"""Which regions of an image stand for it when only its caption is known (DetCLIPv2, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import nms

Objectness = Literal["batch_text", "own_text", "centerness", "batch_text_centerness"]


def objectness(
    kind: Objectness, similarity: Tensor, own: Sequence[int], quality: Tensor | None, bias: Tensor | float = 0.0
) -> Tensor:
    """Score of each region of one image without knowing its class (table 2a of the paper).

    Args:
        kind: `batch_text` (the paper's choice) is the highest similarity to any concept of this process's batch,
            `own_text` to a concept of the image's own caption, `centerness` the predicted centerness,
            `batch_text_centerness` the product of both as probabilities.
        similarity: `[N, C]` logits, regions against the concepts of this process's batch.
        own: columns of the image's own concepts.
        quality: `[N]` logits of centerness; needed by the last two kinds.
        bias: added to the similarities before the sigmoid of the product.

    Returns:
        `[N]`.

    Raises:
        ValueError: unknown kind, a kind that needs centerness without it, or no concept to compare with.
    """
    if kind not in ("batch_text", "own_text", "centerness", "batch_text_centerness"):
        raise ValueError(f"unknown objectness {kind!r}: batch_text, own_text, centerness or batch_text_centerness")
    if "centerness" in kind and quality is None:
        raise ValueError(f"objectness {kind!r} needs a head with centerness")
    if kind == "centerness":
        return quality  # type: ignore[return-value]
    columns = similarity[:, list(own)] if kind == "own_text" else similarity
    if not columns.shape[1]:
        raise ValueError("no concept to compare regions with")
    best = columns.amax(dim=1)
    return best if kind != "batch_text_centerness" else (best + bias).sigmoid() * quality.sigmoid()  # type: ignore[union-attr]


@torch.no_grad()
def select_regions(boxes: Tensor, scores: Tensor, k: int, nms_threshold: float = 0.6, candidates: int = 1000) -> Tensor:
    """Best regions of one image after class-agnostic NMS.

    Deterministic: of equal scores the lower index is better.

    Args:
        boxes: `[N, 4]` xyxy; scores: `[N]`, finite.
        k: most regions.
        nms_threshold: IoU above which the lower of two regions is dropped.
        candidates: highest scores that take part in NMS.

    Returns:
        int64 `[min(k, ...)]` indices, best first.
    """
    order = scores.float().sort(descending=True, stable=True).indices[:candidates]
    rank = torch.arange(len(order), 0, -1, dtype=torch.float32, device=order.device)  # no ties for nms to break
    return order[nms(boxes[order].float(), rank, nms_threshold)[:k]]


@dataclass(frozen=True)
class RegionSelection:
    """Settings of the selection: score, number of regions, NMS IoU and candidates before NMS."""

    score: Objectness = "batch_text"
    k: int = 100
    nms_threshold: float = 0.6
    candidates: int = 1000
