"""Customised positive queries from the coordinates of auxiliary heads (section 3.3, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polydet.detr import Assignment, Branch, Predictions, Queries, Targets
from polydet.layers import sine_encoding, xavier_reset, xyxy_to_cxcywh

from .heads import Coordinates

HeadEmbedding = Literal["none", "scalar", "vector"]
NegativePool = Literal["all", "background"]
EPS = 1e-5  # of the inverse sigmoid that boxes pass before they are encoded


@dataclass(frozen=True)
class QueryGroup:
    """Coordinates of one head that become queries, `N` an image.

    Attributes:
        boxes: `[B, N, 4]` cxcywh as fractions of the unpadded image, which anchors may be larger than: the released
            code looks beyond it, and so does this.
        features: `[B, N, C]`.
        targets: per image the objects of its positives, in the order of the queries.
        counts: positives of each image; they come first.
        rows: queries of each image that count, from the first; the rest are neither positive nor negative.
    """

    boxes: Tensor
    features: Tensor
    targets: list[Targets]
    counts: list[int]
    rows: list[int]

    @property
    def complete(self) -> bool:
        """All rows of all images count."""
        return all(n == self.boxes.shape[1] for n in self.rows)

    def classes(self) -> Tensor:
        """``[B, N]`` category that each query is to answer for, where each answers for one: a positive for its
        object's, the others for those of the image's objects in turn, or the first of all where it has none."""
        size, device = self.boxes.shape[1], self.boxes.device
        rows = []
        for target in self.targets:
            labels = target.labels if len(target.labels) else torch.zeros(1, dtype=torch.int64, device=device)
            rows.append(labels.repeat(-(-size // len(labels)))[:size])
        return torch.stack(rows)

    def branch(self, predictions: Predictions, name: str, factor: float = 1.0) -> Branch:
        """The criterion's branch: positives answer for their own object at every layer (eq. 5)."""
        device = self.boxes.device
        image = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(self.counts)])
        query = torch.cat([torch.arange(n, device=device) for n in self.counts])
        assignment = Assignment.same_for_layers(len(predictions.boxes), image, query, query)
        weight = None
        if not self.complete:
            index = torch.arange(self.boxes.shape[1], device=device)
            weight = (index < torch.tensor(self.rows, device=device)[:, None]).to(self.boxes.dtype)[..., None]
        return Branch(predictions, self.targets, name, assignment, weight, factor=factor)


def choose(coordinates: Coordinates, size: int, pool: NegativePool = "all") -> tuple[Tensor, Tensor]:
    """Queries of one image: its positives, or a random subset of `size` of them, then random negatives up to `size`.

    Where there are too few negatives they repeat; where there are none, nothing is added.

    Args:
        pool: what may be a negative, see `sample_group`.

    Returns:
        positives `[m]` and negatives `[size - m]` or `[0]`, rows of `coordinates`.
    """
    positives = coordinates.positives
    negatives = coordinates.others if pool == "all" else coordinates.negatives
    if len(positives) > size:
        positives = positives[torch.randperm(len(positives), device=positives.device)[:size]]
    missing = size - len(positives)
    if missing <= len(negatives):
        return positives, negatives[torch.randperm(len(negatives), device=negatives.device)[:missing]]
    if len(negatives):
        negatives = negatives[torch.randint(len(negatives), (missing,), device=negatives.device)]
    return positives, negatives


def sample_group(
    coordinates: Sequence[Coordinates],
    image_sizes: Sequence[tuple[int, int]],
    max_queries: int = 300,
    min_queries: int = 9,
    pad_with_negatives: bool = True,
    negatives: NegativePool = "all",
) -> QueryGroup:
    """Choose the queries of one head for a batch.

    Every image gets as many as the one with the most positives, at least `min_queries`, at most `max_queries`.

    Args:
        image_sizes: height, width before padding.
        pad_with_negatives: fill up with random negatives, trained as background (the released code). False: rows
            that do not count ("no negative queries are introduced", section 3.5).
        negatives: drawn from "all" coordinates that are not positive, those that the assignment ignored and those in
            a batch's padding among them (the released code), or from the "background" of the image alone.
    """
    size = max(min(max_queries, max(len(c.positives) for c in coordinates)), min_queries)
    boxes, features, targets, counts, counted = [], [], [], [], []
    for c, (height, width) in zip(coordinates, image_sizes):
        positives, others = choose(c, size, negatives)
        rows = torch.cat([positives, others]) if pad_with_negatives else positives
        counts.append(len(positives))
        counted.append(len(rows))
        rows = F.pad(rows, (0, size - len(rows)))
        scale = c.boxes.new_tensor([width, height, width, height])
        boxes.append(xyxy_to_cxcywh(_take(c.boxes, rows) / scale))
        features.append(_take(c.features, _take(c.feature_index, rows)))
        targets.append(Targets(c.labels[positives], xyxy_to_cxcywh(c.targets[positives] / scale)))
    return QueryGroup(torch.stack(boxes).detach(), torch.stack(features), targets, counts, counted)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of `values`; zeros for all where there is nothing to take."""
    if not len(values):
        return values.new_zeros(len(rows), *values.shape[1:])
    return values[rows]


class PositiveQueries(nn.Module):
    """Encodes boxes and features of each head into decoder queries (eq. 4); weights are the head's own.

    Args:
        num_heads: heads that give queries.
        position: also make query positions, where the decoder does not derive them from references.
        feature: add the projected feature (the paper; the released Co-DINO leaves it out).
        head_embedding: added to the position: one learned number a head with the second at zero ("scalar", the
            released R50 models), a vector a head, or none.
    """

    def __init__(
        self,
        num_heads: int,
        dim: int = 256,
        position: bool = False,
        feature: bool = True,
        head_embedding: HeadEmbedding = "none",
        temperature: float = 10000.0,
    ) -> None:
        super().__init__()
        if head_embedding != "none" and not position:
            raise ValueError("head_embedding is added to the query position: it needs position=True")
        self.dim, self.position, self.feature, self.temperature = dim, position, feature, temperature
        width = 2 * dim if position else dim
        self.box_proj = nn.ModuleList(nn.Linear(2 * dim, width) for _ in range(num_heads))
        self.box_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_heads))
        count = num_heads if feature else 0
        self.feature_proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(count))
        self.feature_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(count))
        self.head_embedding: nn.Embedding | None = None
        if head_embedding == "vector":
            self.head_embedding = nn.Embedding(num_heads, dim)
        elif head_embedding == "scalar":
            self.head_embedding = nn.Embedding(num_heads, 1, padding_idx=1 if num_heads > 1 else None)
        xavier_reset(self)

    def forward(self, index: int, group: QueryGroup) -> Queries:
        """Queries of head `index`: content and position `[B, N, C]`, references the boxes themselves."""
        encoded = sine_encoding(group.boxes.clamp(EPS, 1 - EPS), self.dim // 2, self.temperature)
        encoded = self.box_norm[index](self.box_proj[index](encoded))
        position: Tensor | None = None
        content = encoded
        if self.position:
            position, content = encoded.split(self.dim, dim=-1)
        if self.feature:
            content = content + self.feature_norm[index](self.feature_proj[index](group.features))
        if position is not None and self.head_embedding is not None:
            position = position + self.head_embedding.weight[index]
        return Queries(content, group.boxes, position=position)
