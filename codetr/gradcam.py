"""Distances between heads by their class activation maps (eqs. 9 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .collaborators import image_sizes
from .heads import AuxiliaryHead
from .meta_arch import CoDETR

DETR_HEAD = "detr"


def activation_map(maps: Sequence[Tensor], gradients: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """Grad-CAM of feature maps as a distribution over the finest level's cells.

    Args:
        maps, gradients: one `[C, H_l, W_l]` a level.

    Returns:
        `[H_0 * W_0]`, positive, sums to 1.
    """
    size = maps[0].shape[-2:]
    cams = []
    for feature, gradient in zip(maps, gradients):
        weight = gradient.mean(dim=(1, 2), keepdim=True)
        cam = (weight * feature).sum(dim=0).relu()
        cams.append(F.interpolate(cam[None, None], size=size, mode="bilinear", align_corners=False)[0, 0])
    total = torch.stack(cams).mean(dim=0).flatten() + eps
    return total / total.sum()


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """KL(p, q) of two distributions `[n]`."""
    return float((p * (p / q).log()).sum())


def head_maps(model: CoDETR, x: dict[str, Any]) -> dict[str, Tensor]:
    """Activation maps of every head of the model on one image with ground truth.

    The score of an auxiliary head is the sum of its positives' logits at their class, that of the DETR head the sum
    of its matched queries' logits in the last layer.

    Returns:
        `{"detr": ..., "0:atss": ...}`, see `activation_map`. Empty for an image without objects.
    """
    parts = model.collaborators
    if parts is None:
        raise ValueError("the model has no auxiliary heads to compare")
    if not len(x["instances"]):
        return {}
    images = model.preprocess([x])
    targets = model.prepare_targets([x])
    with torch.no_grad():
        memory = model.encode(images)
    tokens = memory.tokens.detach().requires_grad_()
    memory = replace(memory, tokens=tokens)
    maps = [m[0].detach() for m in memory.maps()]

    def cam(score: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(score, tokens, retain_graph=True)
        return activation_map(maps, [g[0] for g in memory.layout.split(gradient)])

    predictions = model.decode(model.build_queries(memory, None), memory)
    assignment = model.criterion.matcher(predictions, targets)
    query, target = assignment.of(len(predictions.boxes) - 1, 0)
    result = {DETR_HEAD: cam(predictions.logits[-1, 0, query, targets[0].labels[target]].sum())}
    instances = [x["instances"].to(model.device)]
    sizes = image_sizes(images)
    pyramid = parts.adapter(memory.maps())
    for i, (name, head) in enumerate(zip(parts.names, parts.heads)):
        assert isinstance(head, AuxiliaryHead)
        head.train()  # assignments are made in training mode
        with torch.no_grad():
            _, coordinates = parts.assign(i, pyramid, instances, sizes)
        head.eval()
        if len(coordinates[0].positives):
            result[f"{i}:{name}"] = cam(head.class_score(pyramid, coordinates).sum())
    return result


class HeadDistances:
    """Mean KL divergence between heads over images (eq. 9), and each head's mean distance to the others (eq. 10)."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], float] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def update(self, maps: dict[str, Tensor]) -> None:
        """Add the maps of one image, see `head_maps`."""
        for a, p in maps.items():
            for b, q in maps.items():
                if a != b:
                    self.sums[a, b] = self.sums.get((a, b), 0.0) + kl_divergence(p, q)
                    self.counts[a, b] = self.counts.get((a, b), 0) + 1

    def pair(self, a: str, b: str) -> float:
        """S_ij of eq. 9."""
        return self.sums[a, b] / self.counts[a, b]

    def heads(self) -> list[str]:
        """Names, auxiliary heads in their order, the DETR head last."""
        names = sorted({a for a, _ in self.sums} - {DETR_HEAD}, key=lambda name: int(name.split(":")[0]))
        return [*names, DETR_HEAD]

    def average(self, head: str, others: Sequence[str] | None = None) -> float:
        """S_i of eq. 10 over the auxiliary heads; with a single one, its distance to the DETR head."""
        auxiliary = [n for n in self.heads() if n != DETR_HEAD]
        others = list(others) if others is not None else [n for n in auxiliary if n != head]
        others = others or [DETR_HEAD]
        total = sum(self.pair(head, n) + self.pair(n, head) for n in others)
        return total / (2 * len(others))
