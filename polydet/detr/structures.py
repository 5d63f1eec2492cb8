"""What flows between the parts of a DETR."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


def count_classes(classes: int | Sized) -> int:
    """Number of classes, from itself or from a label space."""
    return classes if isinstance(classes, int) else len(classes)


@dataclass(eq=False)
class TokenLayout:
    """Where the tokens of a flattened feature pyramid lie.

    `spatial_shapes` (height, width) of each of L levels; `padding_mask` ``[B, S]`` bool, True on padding, or None
    where nothing is padded; `valid_ratios` ``[B, L, 2]`` (x, y): the unpadded part of each level.
    """

    spatial_shapes: tuple[tuple[int, int], ...]
    padding_mask: Tensor | None
    valid_ratios: Tensor

    @property
    def num_tokens(self) -> int:
        """S, over all levels."""
        return sum(h * w for h, w in self.spatial_shapes)

    @cached_property
    def centers(self) -> Tensor:
        """``[B, S, 2]`` (x, y) of each token as a fraction of the unpadded image; above 1 on padding."""
        centers = []
        device, dtype = self.valid_ratios.device, self.valid_ratios.dtype
        for level, (height, width) in enumerate(self.spatial_shapes):
            rows, columns = (torch.arange(n, device=device, dtype=dtype) + 0.5 for n in (height, width))
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            grid = torch.stack((x / width, y / height), dim=-1).flatten(0, 1)
            centers.append(grid[None] / self.valid_ratios[:, level, None])
        return torch.cat(centers, dim=1)

    @cached_property
    def levels(self) -> Tensor:
        """``[S]`` level index of each token."""
        device = self.valid_ratios.device
        return torch.cat([torch.full((h * w,), i, device=device) for i, (h, w) in enumerate(self.spatial_shapes)])

    def on_levels(self, references: Tensor) -> Tensor:
        """References ``[B, Q, 2 | 4]``, fractions of the unpadded image, to ``[B, Q, L, 2 | 4]`` of the padded maps."""
        ratios = self.valid_ratios if references.shape[-1] == 2 else self.valid_ratios.repeat(1, 1, 2)
        return references[:, :, None] * ratios[:, None]

    def split(self, tokens: Tensor) -> list[Tensor]:
        """``[B, S, C]`` to one map ``[B, C, H, W]`` a level."""
        sizes = [h * w for h, w in self.spatial_shapes]
        parts = tokens.split(sizes, dim=1)
        return [t.transpose(1, 2).unflatten(2, shape) for t, shape in zip(parts, self.spatial_shapes)]


@dataclass(eq=False)
class Memory:
    """Tokens of an image, before or after the encoder: `tokens` and `position` ``[B, S, C]``, and their layout."""

    tokens: Tensor
    position: Tensor
    layout: TokenLayout

    def maps(self) -> list[Tensor]:
        """Tokens as one map ``[B, C, H, W]`` a level."""
        return self.layout.split(self.tokens)


def token_layout(
    shapes: Sequence[tuple[int, int]], padding_mask: Tensor | None, like: Tensor
) -> tuple[TokenLayout, list[Tensor | None]]:
    """Layout of a pyramid, and the padding mask of each level, ``[B, H_l, W_l]``.

    Args:
        shapes: (height, width) of each level.
        padding_mask: ``[B, H, W]`` of the images, True on padding; None: nothing is padded.
        like: tensor whose batch size, device and precision (at least float32) the layout takes.
    """
    spatial_shapes = tuple((int(h), int(w)) for h, w in shapes)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if padding_mask is None:
        ratios = torch.ones(like.shape[0], len(spatial_shapes), 2, device=like.device, dtype=dtype)
        return TokenLayout(spatial_shapes, None, ratios), [None] * len(spatial_shapes)
    mask = padding_mask[None].float()
    masks = [F.interpolate(mask, size=shape)[0] > 0.5 for shape in spatial_shapes]
    ratio_list = [
        torch.stack(((~m[:, 0, :]).to(dtype).mean(1), (~m[:, :, 0]).to(dtype).mean(1)), dim=-1) for m in masks
    ]
    flat = torch.cat([m.flatten(1) for m in masks], dim=1)
    return TokenLayout(spatial_shapes, flat, torch.stack(ratio_list, dim=1)), list(masks)


@dataclass(eq=False)
class Targets:
    """Objects of one image: `labels` ``[n]`` int64; `boxes` ``[n, 4]`` cxcywh as fractions of the unpadded image;
    `name` says which image in errors. Where a `LabelScope` limits what may be said of the image, ``[K]`` bool each:
    `own` labels of its dataset, `known` labels whose presence or absence is known; None: all of them."""

    labels: Tensor
    boxes: Tensor
    name: str = "?"
    own: Tensor | None = None
    known: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(eq=False)
class Predictions:
    """`logits` ``[L, B, Q, K]``; `boxes` ``[L, B, Q, 4]`` cxcywh in (0, 1); `hidden` ``[L, B, Q, C]`` the query
    features that they were read from. L layers, the last one is the result.

    Attributes:
        classes: ``[B, Q]`` int64, the one category that each query answers for; then K is 1. None: all classes.
        embeddings: ``[L, B, Q, D]`` the queries as unit rows among the texts, where the label head has such a space.
        class_scores: ``[B, n]`` the probability that each category is in the image, where the query source says so.
    """

    logits: Tensor
    boxes: Tensor
    hidden: Tensor | None = None
    classes: Tensor | None = None
    embeddings: Tensor | None = None
    class_scores: Tensor | None = None

    def select(self, queries: slice) -> Predictions:
        """The same for some of the queries."""

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, :, queries]

        classes = None if self.classes is None else self.classes[:, queries]
        logits, boxes = self.logits[:, :, queries], self.boxes[:, :, queries]
        return Predictions(logits, boxes, rows(self.hidden), classes, rows(self.embeddings), self.class_scores)

    def answers(self, image: int) -> dict[str, Tensor]:
        """What a post-processing takes, by name: the last layer's ``logits`` ``[Q, K]`` and ``boxes`` ``[Q, 4]`` of
        one image; for queries of one category also ``classes`` ``[Q]`` and, where known, their ``presence`` ``[Q]``."""
        answers = {"logits": self.logits[-1, image], "boxes": self.boxes[-1, image]}
        if self.classes is not None:
            answers["classes"] = self.classes[image]
            if self.class_scores is not None:
                answers["presence"] = self.class_scores[image, self.classes[image]]
        return answers


@dataclass(eq=False)
class Assignment:
    """Which prediction answers for which object: four int64 tensors ``[M]``, a row a pair.

    `target` counts within its image. A prediction that no row names is background.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    @staticmethod
    def same_for_layers(num_layers: int, image: Tensor, query: Tensor, target: Tensor) -> Assignment:
        """One set of pairs, used at every layer."""
        layer = torch.arange(num_layers, device=image.device).repeat_interleave(len(image))
        return Assignment(layer, image.repeat(num_layers), query.repeat(num_layers), target.repeat(num_layers))

    def of(self, layer: int, image: int) -> tuple[Tensor, Tensor]:
        """(query, target) indices of one image at one layer."""
        rows = (self.layer == layer) & (self.image == image)
        return self.query[rows], self.target[rows]


@dataclass(eq=False)
class Branch:
    """What the criterion takes: predictions, what they should be, and who answers for what.

    Attributes:
        name: put into the loss names, `loss_class_{name}_{layer}`; "" for the matched queries.
        assignment: made beforehand (denoising, positive queries); None: the criterion's matcher makes it.
        class_weight: broadcastable to ``[B, Q, K]``: padded queries or classes left out of the classification.
        normalizer: divides the sums; None: objects (matched) or positive pairs of a layer (made beforehand),
            averaged over processes.
        factor: of all losses of the branch.
    """

    predictions: Predictions
    targets: Sequence[Targets]
    name: str = ""
    assignment: Assignment | None = None
    class_weight: Tensor | None = None
    normalizer: Tensor | None = None
    factor: float = 1.0


@dataclass(eq=False)
class Queries:
    """What the decoder starts from.

    Attributes:
        content: ``[B, Q, C]``.
        references: ``[B, Q, 2]`` points or ``[B, Q, 4]`` boxes (cxcywh) in (0, 1); None where queries have no place.
        position: ``[B, Q, C]`` added to the content in attention; None where the decoder derives it from references.
        attention_mask: ``[Q, Q]`` bool, True where a query (row) must not see another (column).
        branches: losses that belong to these queries beyond the matching of the last ones: the encoder's proposals.
        denoising: the noised objects that come first among the queries.
        classes: ``[B, Q]`` int64, the one category that each query answers for; None: all of them.
        category_logits: ``[B, n]``, which categories are in each image, of a source that asks first; None: not asked.
    """

    content: Tensor
    references: Tensor | None = None
    position: Tensor | None = None
    attention_mask: Tensor | None = None
    branches: list[Branch] = field(default_factory=list)
    denoising: DenoisingQueries | None = None
    classes: Tensor | None = None
    category_logits: Tensor | None = None

    def of_image(self, image: int, count: int) -> Queries:
        """The first `count` queries of one image, as a batch of one; without branches and denoising."""
        row, rows = slice(image, image + 1), slice(0, count)

        def part(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[row, rows]

        return Queries(self.content[row, rows], part(self.references), part(self.position), classes=part(self.classes))


@dataclass(eq=False)
class DenoisingQueries:
    """Noised objects: `content` ``[B, D, C]``, `references` ``[B, D, 4]``; `group_size` queries a group; `image`,
    `query`, `target` ``[M]`` say which query must rebuild which object (the others are background); `class_weight`
    ``[B, D, 1]`` is 0 for queries left out of the classification, None where none is; `normalizer` (0-d) divides the
    losses, see `Branch`; `classes` ``[B, D]`` the one category that each answers for, None: all of them."""

    content: Tensor
    references: Tensor
    group_size: int
    image: Tensor
    query: Tensor
    target: Tensor
    class_weight: Tensor | None = None
    normalizer: Tensor | None = None
    classes: Tensor | None = None

    @property
    def num_queries(self) -> int:
        """D."""
        return self.content.shape[1]
