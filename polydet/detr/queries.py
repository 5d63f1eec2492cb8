"""Where decoder queries come from: learned embeddings, learned anchors, or the encoder's best proposals."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polydet.layers import MLP, prior_bias, sine_encoding, xavier_reset

from .decoder import decode_boxes, without_autocast
from .label_heads import LabelHead
from .structures import Branch, Memory, Predictions, Queries, Targets, count_classes


class QuerySource(nn.Module):
    """Base class: makes `Queries` for a batch from its encoded memory."""

    num_queries: int

    def forward(
        self, memory: Memory, targets: Sequence[Targets] | None = None, labels: LabelHead | None = None
    ) -> Queries:
        """`targets` are given in training only; `labels` are the detector's, for a source that looks for classes."""
        raise TypeError(f"{type(self).__name__} must define forward(memory, targets, labels)")


class LearnedQueries(QuerySource):
    """Learned positions, and learned or zero content (DETR, Conditional DETR, plain Deformable-DETR).

    Args:
        content: "zeros" (DETR, Conditional) or "learned" (Deformable).
        reference: how a 2-d reference point is read from the position: None (DETR), "mlp" (Conditional), "linear"
            (Deformable).
    """

    def __init__(
        self,
        num_queries: int = 300,
        dim: int = 256,
        content: Literal["zeros", "learned"] = "zeros",
        reference: Literal["linear", "mlp"] | None = None,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.position = nn.Embedding(num_queries, dim)
        self.content = nn.Embedding(num_queries, dim) if content == "learned" else None
        self.reference: nn.Module | None = None
        if reference is not None:
            self.reference = nn.Linear(dim, 2) if reference == "linear" else MLP(dim, dim, 2, 2)
            xavier_reset(self.reference)

    def forward(
        self, memory: Memory, targets: Sequence[Targets] | None = None, labels: LabelHead | None = None
    ) -> Queries:
        """The same queries for every image of the batch, whatever is in it."""
        batch = memory.tokens.shape[0]
        position = self.position.weight
        content = torch.zeros_like(position) if self.content is None else self.content.weight
        references = None
        if self.reference is not None:
            references = decode_boxes(self.reference(position), None)[None].expand(batch, -1, -1)
        return Queries(content[None].expand(batch, -1, -1), references, position=position[None].expand(batch, -1, -1))


class AnchorQueries(QuerySource):
    """Learned anchor boxes with zero or learned content (DAB-DETR, DAB- and DN-Deformable-DETR).

    Args:
        indicator: DN-DETR: the last content channel is fixed to 0, where denoising queries have 1.
    """

    def __init__(
        self,
        num_queries: int = 300,
        dim: int = 256,
        content: Literal["zeros", "learned"] = "zeros",
        indicator: bool = False,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.dim = dim
        self.anchors = nn.Embedding(num_queries, 4)
        self.content = nn.Embedding(num_queries, dim - int(indicator)) if content == "learned" else None

    def forward(
        self, memory: Memory, targets: Sequence[Targets] | None = None, labels: LabelHead | None = None
    ) -> Queries:
        """The same queries for every image of the batch, whatever is in it."""
        batch = memory.tokens.shape[0]
        anchors = self.anchors.weight.sigmoid()
        if self.content is None:
            content = anchors.new_zeros(self.num_queries, self.dim)
        else:
            content = F.pad(self.content.weight, (0, self.dim - self.content.weight.shape[1]))
        return Queries(content[None].expand(batch, -1, -1), anchors[None].expand(batch, -1, -1))


class TwoStageQueries(QuerySource):
    """The encoder's best tokens become anchors (Deformable-DETR two-stage, Deformable-DETR++, DINO).

    Every token proposes a box around its own centre, of size ``0.05 * 2^level``, and is scored by its own class head.
    The best `num_queries` become detached 4-d references; where the pyramid has fewer tokens, all of them do.

    Args:
        num_classes: a number or a label space; None: tokens are scored by one more module of the detector's label head.
        content: "proposal": from the proposal's sine encoding (pure selection); "learned": independent of the image
            (mixed selection, DINO sec. 3.4).
        position: "proposal": from the proposal's sine encoding (Deformable-DETR); "anchor": left to the decoder.
        rank: score of a token: "first" class (Deformable-DETR, whose encoder labels every object 0) or the "max"
            over classes (DINO).
        supervise: "all" tokens, every object labelled 0 (Deformable-DETR), or the "selected" ones with real labels.
        content_init: of learned content: "normal" N(0, 1) (Co-DETR), or "xavier" uniform, with a standard deviation of
            0.042 for 900 queries of 256 channels (DINO, whose `_reset_parameters` reaches it after its N(0, 1)).
        select_padding: when tokens of a batch's padding compete for the queries: "always" (the authors of all members),
            "training" or "never". They all look alike, and where they win an image beside a larger one is lost.
    """

    def __init__(
        self,
        num_classes: int | Sized | None = None,
        num_queries: int = 900,
        dim: int = 256,
        content: Literal["proposal", "learned"] = "learned",
        position: Literal["proposal", "anchor"] = "anchor",
        rank: Literal["first", "max"] = "max",
        supervise: Literal["all", "selected"] = "selected",
        base_size: float = 0.05,
        content_init: Literal["normal", "xavier"] = "normal",
        select_padding: Literal["always", "training", "never"] = "training",
    ) -> None:
        super().__init__()
        if content == "proposal" and position == "anchor":
            raise ValueError("content='proposal' comes from the same projection as position='proposal'; use both")
        if content_init not in ("normal", "xavier"):
            raise ValueError(f"content_init must be normal or xavier, got {content_init!r}")
        if select_padding not in ("always", "training", "never"):
            raise ValueError(f"select_padding must be always, training or never, got {select_padding!r}")
        self.num_queries = num_queries
        self.dim = dim
        self.rank = rank
        self.supervise = supervise
        self.base_size = base_size
        self.select_padding = select_padding
        self.token_proj = nn.Linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.class_head: nn.Module | None = None
        if num_classes is not None:
            self.class_head = nn.Linear(dim, count_classes(num_classes))
        self.box_head = MLP(dim, dim, 4, 3)
        self.content = nn.Embedding(num_queries, dim) if content == "learned" else None
        self.content_init = content_init
        self.position_proj: nn.Linear | None = None
        if position == "proposal":
            self.position_proj = nn.Linear(2 * dim, 2 * dim)
            self.position_norm = nn.LayerNorm(2 * dim)
        self.reset_parameters()

    @property
    def rows_by_place(self) -> tuple[str, ...]:
        """Parts whose rows are no classes: where every object is labelled 0, row 0 tells objects from the rest,
        whatever the class 0 of a checkpoint is called."""
        return ("class_head",) if self.supervise == "all" else ()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections; class prior 0.01; proposals start at their own grid box; see `content_init`."""
        xavier_reset(self.token_proj)
        if self.content is not None and self.content_init == "xavier":
            nn.init.xavier_uniform_(self.content.weight)
        if self.position_proj is not None:
            xavier_reset(self.position_proj)
        if isinstance(self.class_head, nn.Linear):
            nn.init.constant_(self.class_head.bias, prior_bias())
        self.box_head.zero_last()

    def token_features(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Features ``[B, S, C]`` and grid boxes ``[B, S, 4]`` as logits, +inf where a token may not propose:
        padding, and boxes whose centre or size lies outside (0.01, 0.99)."""
        layout = memory.layout
        size = self.base_size * 2.0 ** layout.levels.to(layout.centers.dtype)
        grid = torch.cat((layout.centers, size[None, :, None].expand(len(layout.centers), -1, 2)), dim=-1)
        usable = ((grid > 0.01) & (grid < 0.99)).all(-1)
        if layout.padding_mask is not None:
            usable = usable & ~layout.padding_mask
        logits = torch.log(grid / (1 - grid)).masked_fill(~usable[..., None], float("inf"))
        features = self.token_norm(self.token_proj(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        return features, logits

    def classify(self, features: Tensor, labels: LabelHead | None = None) -> Tensor:
        """Token features ``[B, S, C]`` to class logits ``[B, S, K]``, of the words that `labels` speak of now."""
        assert self.class_head is not None  # `DETR` gives the source one where it has none
        return self.class_head(features) if labels is None else labels.read(self.class_head, features)

    def select(self, logits: Tensor, unwanted: Tensor | None = None) -> Tensor:
        """Indices ``[B, min(num_queries, S)]`` of the best tokens by their class logits ``[B, S, K]``; tokens that are
        `unwanted` ``[B, S]`` only where there are no others."""
        score = logits[..., 0] if self.rank == "first" else logits.max(-1).values
        if unwanted is not None:
            score = score.masked_fill(unwanted, torch.finfo(score.dtype).min)
        return score.topk(min(self.num_queries, score.shape[1]), dim=1).indices

    def boxes_of(self, features: Tensor, grid: Tensor) -> Tensor:
        """Box logits ``[B, n, 4]`` of tokens with their grid logits."""
        return without_autocast(self.box_head, features).to(grid.dtype) + grid

    def forward(
        self, memory: Memory, targets: Sequence[Targets] | None = None, labels: LabelHead | None = None
    ) -> Queries:
        """Queries at the best proposals; in training, also the proposals' branch `enc`."""
        features, grid = self.token_features(memory)
        logits = self.classify(features, labels)
        padding_competes = self.select_padding == "always" or (
            self.select_padding == "training" and targets is not None
        )
        best = self.select(logits.detach(), None if padding_competes else memory.layout.padding_mask)
        if self.supervise == "all":
            every = self.boxes_of(features, grid)
            anchors = take(every, best)
            proposals = Predictions(logits[None], every.sigmoid()[None])
        else:
            anchors = self.boxes_of(take(features, best), take(grid, best))
            proposals = Predictions(take(logits, best)[None], anchors.sigmoid()[None])
        references = anchors.detach().sigmoid()
        queries = self.queries_at(references)
        if targets is not None:
            queries.branches.append(Branch(proposals, self.proposal_targets(targets), "enc"))
        return queries

    def proposal_targets(self, targets: Sequence[Targets]) -> list[Targets]:
        """What the proposals are matched to: class-agnostic (all labels 0) where all tokens are supervised."""
        if self.supervise == "selected":
            return list(targets)
        return [replace(t, labels=torch.zeros_like(t.labels)) for t in targets]

    def queries_at(self, references: Tensor) -> Queries:
        """Queries with given references ``[B, Q, 4]`` (detached, cxcywh)."""
        batch, count = references.shape[:2]
        position = content = None
        if self.position_proj is not None:
            # the authors encode the sigmoid's own output, which is what `references` holds
            encoded = sine_encoding(references, self.dim // 2)
            position, content = self.position_norm(self.position_proj(encoded)).split(self.dim, dim=-1)
        if self.content is not None:
            content = self.content.weight[None, :count].expand(batch, -1, -1)
        assert content is not None  # the constructor refuses the combination
        return Queries(content, references, position=position)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``[B, n, C]`` of ``[B, S, C]`` by index ``[B, n]``."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def with_denoising(queries: Queries, see_matching: bool = True) -> Queries:
    """Put the denoising queries of `queries` before its other queries, with the mask that keeps answers apart.

    Groups of noised objects never see each other and are never seen by the other queries. They see the other queries
    (`see_matching`) in the authors' code of DN-DETR and DINO, which say it makes no difference.
    """
    noised = queries.denoising
    if noised is None:
        return queries
    if queries.references is None:
        raise ValueError("denoising needs queries with 4-d references")
    references = queries.references
    if references.shape[-1] != 4:
        raise ValueError(f"denoising needs 4-d references, got {references.shape[-1]}-d ones")
    mask = denoising_mask(noised.num_queries, noised.group_size, references.shape[1], references.device, see_matching)
    classes = queries.classes
    if classes is not None:
        if noised.classes is None:
            raise ValueError("queries that answer for one category need denoising that says which (LanguageDenoising)")
        classes = torch.cat((noised.classes, classes), dim=1)
    return replace(
        queries,
        content=torch.cat((noised.content.to(queries.content.dtype), queries.content), dim=1),
        references=torch.cat((noised.references.to(references.dtype), references), dim=1),
        attention_mask=mask,
        classes=classes,
    )


def denoising_mask(
    num_denoising: int, group_size: int, num_matching: int, device: torch.device, see_matching: bool = True
) -> Tensor:
    """``[Q, Q]`` bool, True where a query (row) must not see another (column); denoising queries come first."""
    total = num_denoising + num_matching
    group = torch.arange(total, device=device) // max(group_size, 1)
    group[num_denoising:] = -1
    different = group[:, None] != group[None, :]
    if see_matching:
        different[:, num_denoising:] = False
    return different


__all__ = [
    "AnchorQueries",
    "LearnedQueries",
    "QuerySource",
    "TwoStageQueries",
    "denoising_mask",
    "take",
    "with_denoising",
]
