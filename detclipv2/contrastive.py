"""Learning from image-text pairs: word-region similarity of an image and a text, and the losses on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from detclipv2.gather import gather_rows
from polydet.layers.reduce import mean_over_processes

Matching = Literal["closest", "softmax", "largest_box"]
Side = Literal["text_to_image", "image_to_text", "both"]
Axis = Literal["images", "texts"]


@dataclass(frozen=True)
class WordRegionLoss:
    """Settings of `word_region_loss`.

    Attributes:
        temperature: tau of eq. 5.
        label_smoothing: PyTorch's meaning.
        side: similarity that is contrasted: each concept looks for its region (`text_to_image`, eq. 3), each region
            for its concept (`image_to_text`), or the mean of both losses.
        norm_axis: softmax of `text_to_image` over the `images` for a fixed text, or over the `texts` for a fixed
            image; `image_to_text` takes the other axis.  The paper does not say; FILIP's is `images`.
        matching: each concept takes its `closest` region, or all regions weighted by a `softmax` (eq. 4), or the
            whole caption takes the `largest_box` (Detic).
        matching_temperature: tau_t of eq. 4.
        chunk: images whose `[k, C]` similarities are in memory at once; they are computed again in the backward pass.
    """

    temperature: float = 0.5
    label_smoothing: float = 0.1
    side: Side = "text_to_image"
    norm_axis: Axis = "images"
    matching: Matching = "closest"
    matching_temperature: float = 0.1
    chunk: int = 16

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for value, known in (
            (self.side, ("text_to_image", "image_to_text", "both")),
            (self.norm_axis, ("images", "texts")),
            (self.matching, ("closest", "softmax", "largest_box")),
        ):
            if value not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")


def text_to_image_similarity(
    regions: Tensor,
    region_mask: Tensor,
    concepts: Tensor,
    members: Tensor,
    matching: Matching = "closest",
    temperature: float = 0.1,
) -> Tensor:
    """s(image i, text j): mean over the concepts of text j of their similarity to image i (eqs. 2 to 4).

    Args:
        regions: `[B, k, D]`; region_mask: `[B, k]` bool, at least one an image.
        concepts: `[C, D]` distinct concepts of all texts.
        members: int64 `[T, M]`, the concepts of each text, -1 where it has fewer; the first is the whole caption.
        matching: see `WordRegionLoss`; for `largest_box` the first region must be the largest and only the caption
            is compared.
        temperature: of the softmax matching.

    Returns:
        `[B, T]` in the dtype of `regions`.
    """
    if matching == "largest_box":
        return regions[:, 0] @ concepts[members[:, 0]].T
    similarity = regions @ concepts.T  # [B, k, C]
    absent = ~region_mask[..., None]
    if matching == "closest":
        best = similarity.masked_fill(absent, -torch.inf).amax(dim=1)  # [B, C]
    else:
        weight = (similarity / temperature).masked_fill(absent, -torch.inf).softmax(dim=1)
        best = (weight * similarity).sum(dim=1)
    return _masked_mean(best[:, members.clamp(min=0)], members >= 0)


def image_to_text_similarity(regions: Tensor, region_mask: Tensor, concepts: Tensor, members: Tensor) -> Tensor:
    """Mean over the regions of image i of their highest similarity to a concept of text j; arguments as above."""
    similarity = (regions @ concepts.T)[..., members.clamp(min=0)]  # [B, k, T, M]
    best = similarity.masked_fill(members < 0, -torch.inf).amax(dim=-1)  # [B, k, T]
    return _masked_mean(best.transpose(1, 2), region_mask[:, None])


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=-1) / mask.sum(dim=-1)


def pair_logits(similarity: Tensor, over: Axis) -> Tensor:
    """This process's rows of the contrast.

    Args:
        similarity: `[B, T]`, images of this process against the texts of all.
        over: `texts`: rows are this process's images; `images`: rows are this process's texts, columns the images of
            all processes.

    Returns:
        `[B, total]`; row i belongs to column `first + i` where `first` is this process's first row.
    """
    if over == "texts":
        return similarity
    block, first = gather_rows(similarity)
    return block[:, first : first + len(similarity)].T


def word_region_loss(
    regions: Tensor,
    region_mask: Tensor,
    concepts: Tensor,
    members: Tensor,
    first: int,
    settings: WordRegionLoss,
) -> Tensor:
    """Contrastive loss of image-text pairs over the global batch (eq. 5), in float32.

    Image i of this process belongs to text `first + i`. Averaged over processes it is the mean over all pairs.

    Args:
        regions, region_mask: of this process's images, `[B, k, D]` and `[B, k]`.
        concepts, members: of the texts of all processes, see `text_to_image_similarity`.
        first: text of this process's first image.

    Returns:
        0-d.
    """
    sides: tuple[Side, ...] = ("text_to_image", "image_to_text") if settings.side == "both" else (settings.side,)
    with torch.autocast(regions.device.type, enabled=False):
        regions, concepts = regions.float(), concepts.float()
        losses = [_one_sided(side, regions, region_mask, concepts, members, first, settings) for side in sides]
        return torch.stack(losses).mean()


def _one_sided(
    side: Side,
    regions: Tensor,
    region_mask: Tensor,
    concepts: Tensor,
    members: Tensor,
    first: int,
    settings: WordRegionLoss,
) -> Tensor:
    def similarity(rows: Tensor, mask: Tensor, concepts: Tensor) -> Tensor:
        if side == "image_to_text":
            return image_to_text_similarity(rows, mask, concepts, members)
        return text_to_image_similarity(rows, mask, concepts, members, settings.matching, settings.matching_temperature)

    blocks = [
        checkpoint(similarity, rows, mask, concepts, use_reentrant=False)
        for rows, mask in zip(regions.split(settings.chunk), region_mask.split(settings.chunk))
    ]
    over_texts = (settings.norm_axis == "texts") != (side == "image_to_text")
    logits = pair_logits(torch.cat(blocks), "texts" if over_texts else "images") / settings.temperature
    target = torch.arange(first, first + len(logits), device=logits.device)
    loss = F.cross_entropy(logits, target, label_smoothing=settings.label_smoothing, reduction="sum")
    return loss / mean_over_processes(len(logits), device=logits.device)


def classification_loss(
    region: Tensor, names: Tensor, target: Tensor, temperature: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of one region an image against the distinct class names of the global batch (appendix C).

    Args:
        region: `[B, D]`; names: `[C, D]`; target: int64 `[B]`.

    Returns:
        0-d float32; averaged over processes it is the mean over all images.
    """
    with torch.autocast(region.device.type, enabled=False):
        logits = region.float() @ names.float().T / temperature
        loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="sum")
        return loss / mean_over_processes(len(region), device=region.device)
