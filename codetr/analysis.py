"""The paper's measurements: discriminability of features and attention, instability of matching, where queries lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polydet.detr import DETR, Memory, Predictions, Targets
from polydet.ops import MultiScaleDeformableAttention

from .collaborators import image_sizes
from .meta_arch import CoDETR


class IoFIoB:
    """Intersection over foreground and over background by threshold (eq. 8), summed over images.

    Foreground is the union of the ground-truth boxes; a pixel counts where its score exceeds the threshold.  The
    thresholds are quantiles of all scores: those of a model may lie within a hundredth of each other, where evenly
    spaced thresholds would see nothing.  Scores are told apart to 2^-17 of their distance to 0 or 1, whichever is less.

    Args:
        points: how many thresholds.
    """

    def __init__(self, points: int = 101) -> None:
        self.points = points
        self.counts = torch.zeros(2, 2 * _HALF + 1, dtype=torch.int64)  # foreground, background

    def update(self, score: Tensor, boxes: Tensor) -> None:
        """Add one image: `score` `[H, W]` in 0..1, `boxes` `[n, 4]` xyxy pixels of the same image."""
        foreground = torch.zeros_like(score, dtype=torch.bool)
        for x0, y0, x1, y1 in boxes.round().long().tolist():
            foreground[max(y0, 0) : y1, max(x0, 0) : x1] = True
        place = _place(score)
        for row, mask in enumerate((foreground, ~foreground)):
            self.counts[row] += torch.bincount(place[mask].cpu(), minlength=self.counts.shape[1])

    def thresholds(self) -> Tensor:
        """`[points]`, rising: at the first every pixel counts, at the last none."""
        return torch.cat([_lower_end(self._places()[:-1]), torch.ones(1, dtype=torch.float64)])

    def curve(self) -> tuple[Tensor, Tensor]:
        """(IoF, IoB), both `[points]`, falling from 1 to 0."""
        above = F.pad(self.counts.flip(1).cumsum(1).flip(1), (0, 1))  # of a bin and those over it
        iof, iob = above[:, self._places()].double() / self.counts.sum(1, keepdim=True).clamp(min=1)
        return iof, iob

    def area(self) -> float:
        """Area under the curve: 0.5 for scores that say nothing, 1 for those that tell objects from background."""
        iof, iob = self.curve()
        return float(torch.trapezoid(iof.flip(0), iob.flip(0)))

    def _places(self) -> Tensor:
        """Bins that the thresholds are the lower ends of; the last is beyond all."""
        below = self.counts.sum(0).cumsum(0).double()
        wanted = torch.linspace(0, 1, self.points, dtype=torch.float64)[1:-1] * below[-1]
        ends = torch.tensor([self.counts.shape[1]])
        return torch.cat([torch.zeros(1, dtype=torch.int64), torch.searchsorted(below, wanted, right=True), ends])

    def iof_at(self, iob: float) -> float:
        """IoF where the curve crosses an IoB, to compare models by one number (linear in between)."""
        iof_values, iob_values = (x.flip(0) for x in self.curve())
        return float(_interpolate(iob_values, iof_values, iob))


_TINY = (127 - 24) << 23  # bits of the float32 2^-24
_HALF = ((126 << 23) - _TINY >> 7) + 1  # place of 0.5


def _place(score: Tensor) -> Tensor:
    """A number of a bin, that rises with scores in 0..1: bins are narrow near 0 and near 1, as floats are near 0."""
    score = score.double().clamp(0, 1)
    near = torch.minimum(score, 1 - score).float().view(torch.int32)
    place = ((near - _TINY).clamp(min=-1) >> 7).long() + 1
    return torch.where(score < 0.5, place, 2 * _HALF - place)


def _lower_end(place: Tensor) -> Tensor:
    """The least score of a bin."""
    code = torch.where(place <= _HALF, place, 2 * _HALF - place + 1)
    near = (((code - 1).clamp(min=0) << 7) + _TINY).int().view(torch.float32).double() * (code > 0)
    return torch.where(place <= _HALF, near, 1 - near)


def _interpolate(x: Tensor, y: Tensor, at: float) -> Tensor:
    """Piecewise linear `y` at `at`; `x` rises."""
    right = int(torch.searchsorted(x, torch.tensor(at, dtype=x.dtype)).clamp(1, len(x) - 1))
    span = (x[right] - x[right - 1]).clamp(min=1e-12)
    return y[right - 1] + (y[right] - y[right - 1]) * ((at - x[right - 1]) / span).clamp(0, 1)


def discriminability(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Eq. 7: the norm of the features over channels, by its maximum, resized and averaged over levels.

    Args:
        maps: one `[C, H_l, W_l]` a level.
        size: height, width of the image.

    Returns:
        `[H, W]` in 0..1.
    """
    norms = [m.float().norm(dim=0)[None, None] for m in maps]
    scaled = [n / n.max().clamp(min=1e-12) for n in norms]
    resized = [F.interpolate(n, size=size, mode="bilinear", align_corners=False)[0, 0] for n in scaled]
    return torch.stack(resized).mean(dim=0)


def splat(points: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear histogram of weighted points, the transpose of bilinear sampling.

    Args:
        points: `[n, 2]` (x, y) in 0..1; points outside are dropped.
        weights: `[n]`.
        grid: height, width.

    Returns:
        `[height, width]`.
    """
    height, width = grid
    position = points * points.new_tensor([width, height]) - 0.5
    corner = position.floor()
    result = weights.new_zeros(height * width)
    for dx in (0, 1):
        for dy in (0, 1):
            cell = corner + points.new_tensor([dx, dy])
            share = (1 - (position - cell).abs()).prod(dim=-1) * weights
            x, y = cell.long().unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            result.index_add_(0, (y * width + x)[inside], share[inside])
    return result.view(height, width)


def attention_score(locations: Tensor, weights: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Where the queries of one image look: sampling weights splatted, by their maximum, resized.

    Args:
        locations: `[..., 2]` (x, y) normalised; weights `[...]`.
        grid: of the finest level.
        size: height, width of the image.

    Returns:
        `[H, W]` in 0..1.
    """
    heat = splat(locations.reshape(-1, 2).float(), weights.reshape(-1).float(), grid)
    heat = heat / heat.max().clamp(min=1e-12)
    return F.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


@dataclass
class Pass:
    """One image through a detector: its encoded memory, all layers' predictions and targets."""

    memory: Memory
    predictions: Predictions
    references: Tensor | None
    targets: list[Targets]
    size: tuple[int, int]
    sampling: tuple[Tensor, Tensor] | None


@torch.no_grad()
def run_image(model: DETR, x: dict[str, Any]) -> Pass:
    """Run one image with its ground truth, without denoising; keeps where the last decoder layer looked.

    Args:
        x: model input with `instances`.
    """
    images = model.preprocess([x])
    memory = model.encode(images)
    queries = model.build_queries(memory, None)
    seen: list[tuple[Tensor, Tensor]] = []
    attention: Any = model.decoder.layers[-1].cross_attn
    handle = attention.register_forward_pre_hook(_record_sampling(seen), with_kwargs=True)
    try:
        predictions = model.decode(queries, memory)
    finally:
        handle.remove()
    return Pass(
        memory,
        predictions,
        queries.references,
        model.prepare_targets([x]),
        image_sizes(images)[0],
        seen[0] if seen else None,
    )


def _record_sampling(seen: list[tuple[Tensor, Tensor]]) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module, MultiScaleDeformableAttention):
            query, references, _, shapes = args[:4]
            seen.append(module.sampling(query, references, shapes, kwargs.get("query_pos")))

    return hook


def matched_objects(model: DETR, result: Pass) -> Tensor:
    """V of the last layer: for each query `[Q]` the object it is matched to, or -1 (DN-DETR, section 3.2)."""
    assignment = model.criterion.matcher(result.predictions, result.targets)
    query, target = assignment.of(len(result.predictions.boxes) - 1, 0)
    objects = torch.full((result.predictions.boxes.shape[2],), -1)
    objects[query.cpu()] = target.cpu()
    return objects


def instability(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """IS between two epochs: queries whose object changed, averaged over images (DN-DETR, eq. 7)."""
    return sum(int((a != b).sum()) for a, b in zip(before, after)) / max(len(before), 1)


def query_distances(model: CoDETR, x: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Where original and customised queries lie (figure 7).

    Returns:
        centres `[n, 2]` as fractions of the image: `positive`, `negative` (original queries by the matching of the
        last layer) and `custom`, a list of one tensor a head; and `object`, for `positive` and each head the object
        of each query.
    """
    parts = model.collaborators
    if parts is None or parts.queries is None:
        raise ValueError("the model has no positive queries: choose a configuration with auxiliary heads")
    result = run_image(model, x)
    objects = matched_objects(model, result)
    centers = result.predictions.boxes[-1, 0, :, :2].cpu() if result.references is None else None
    if result.references is not None:
        centers = result.references[0, :, :2].cpu()
    assert centers is not None
    custom, owners = [], [objects[objects >= 0]]
    instances = [x["instances"].to(model.device)]
    parts.train()
    with torch.no_grad():
        pyramid = parts.adapter(result.memory.maps())
        for i, index in enumerate(parts.query_index):
            if index is None:
                continue
            _, coordinates = parts.assign(i, pyramid, instances, [result.size])
            group = parts.sample(coordinates, [result.size])
            count = group.counts[0]
            custom.append(group.boxes[0, :count, :2].cpu())
            distance = torch.cdist(group.targets[0].boxes, result.targets[0].boxes)
            owners.append(distance.argmin(dim=1).cpu() if count else torch.zeros(0, dtype=torch.int64))
    parts.eval()
    return {
        "positive": [centers[objects >= 0]],
        "negative": [centers[objects < 0]],
        "custom": custom,
        "object": owners,
    }
