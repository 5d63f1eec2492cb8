"""Category-assigned queries (METR, sec. 3.2): each query answers for one category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from polydet.detr import Branch, LabelHead, Memory, Predictions, Queries, Targets, TwoStageQueries
from polydet.detr.label_scope import stack_known
from polydet.detr.queries import take

from .category_extraction import CategoryExtraction, present_labels
from .language import CategoryLabels, DotProduct


@dataclass(eq=False)
class Categories:
    """The categories chosen for each image, best score first.

    Attributes:
        index: ``[B, T]`` int64 in the current vocabulary; entries past `counts` are filler.
        counts: ``[B]`` how many are chosen.
        content: ``[B, T, C]`` what is added to the content of their queries.
        language: ``[B, T, C]`` projected language embeddings.
        bias: ``[B, T]`` of the encoder's class head.
    """

    index: Tensor
    counts: Tensor
    content: Tensor
    language: Tensor
    bias: Tensor


def choose_categories(
    scores: Tensor, top_k: int, present: Tensor | None = None, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `top_k` best categories of each image, those that are present first of all.

    Args:
        scores: ``[B, n]`` in [0, 1], no gradient.
        present: ``[B, n]`` bool, ground truth in training: always chosen, the best of them where there are more than
            `top_k`. Otherwise objects of a category that the scores miss would train no query.
        allowed: ``[B, n]`` bool: others are never chosen; None: all.

    Returns:
        int64 ``[B, min(top_k, n)]``, by falling score, so that a place says nothing about presence; and how many of
        them are allowed ``[B]``.
    """
    key = scores
    if allowed is not None:
        key = key.masked_fill(~allowed, -1.0)
    first = key if present is None else key + 2.0 * present
    chosen = first.topk(min(top_k, scores.shape[1]), dim=1).indices
    key, order = key.gather(1, chosen).sort(dim=1, descending=True, stable=True)
    return chosen.gather(1, order), (key >= 0).sum(1)


def uniform_slots(num_queries: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Equal shares of the queries for each category; what does not divide goes to the first ones.

    Args:
        counts: ``[B]`` categories of each image, at least 1.

    Returns:
        ``[B, Q]`` place of the category among the chosen ones, and number of the query within the category.
    """
    query = torch.arange(num_queries, device=counts.device)[None]
    share, rest = (num_queries // counts)[:, None], (num_queries % counts)[:, None]
    large = rest * (share + 1)  # queries of the categories with one more
    small = query - large
    in_large = query < large
    step = share.clamp(min=1)
    place = torch.where(in_large, query // (share + 1), rest + small // step)
    number = torch.where(in_large, query % (share + 1), small % step)
    return place, number


class CategoryQuerySource(TwoStageQueries):
    """Categories are chosen; the encoder's best tokens for them become anchors; the content names the category.

    `METR` says by `look_for` how many categories an image has, and which module extracts them. Without one, training
    takes the true categories and random others, inference all of them with as many queries each as in training.

    Tokens are scored against the chosen categories only. `uniform`: each category takes its own best tokens by its
    column, equally many. `adaptive`: the tokens that are best overall, each for its best category, at least one for
    every category. The content of query q is ``content[q]`` plus the category's (image-aware) embedding; the former
    starts Xavier-uniform as in DINO's code, small enough for the latter to be seen. Tokens of padding are never taken.
    """

    class_head: DotProduct  # type: ignore[assignment]

    def __init__(
        self,
        num_queries: int = 100,
        dim: int = 256,
        allocation: Literal["uniform", "adaptive"] = "uniform",
        base_size: float = 0.05,
        content_init: Literal["normal", "xavier"] = "xavier",
    ) -> None:
        if allocation not in ("uniform", "adaptive"):
            raise ValueError(f"allocation must be uniform or adaptive, got {allocation!r}")
        super().__init__(None, num_queries, dim, base_size=base_size, content_init=content_init)
        self.class_head = DotProduct(dim)
        self.allocation = allocation
        self.look_for(20, None)

    def look_for(self, top_k: int, cem: CategoryExtraction | None) -> None:
        """Choose `top_k` categories of each image, by `cem`."""
        self.top_k = top_k
        self.cem = cem

    def forward(
        self, memory: Memory, targets: Sequence[Targets] | None = None, labels: LabelHead | None = None
    ) -> Queries:
        """Queries for the categories of each image; in training, also the proposals' branch `enc`.

        Raises:
            TypeError: a label head that is not `CategoryLabels`.
        """
        if not isinstance(labels, CategoryLabels):
            raise TypeError(f"category queries need CategoryLabels as the label head, not {type(labels).__name__}")
        table = labels.contents()
        logits, content = None, table[None].expand(len(memory.tokens), -1, -1)
        if self.cem is not None:
            logits, content = self.cem(table, labels.language.bias("cem"), memory)
        chosen, counts = self._choose(logits, memory, targets, len(table))
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        bias = labels.language.bias("encoder")[chosen]
        categories = Categories(chosen, counts, content[rows, chosen], table[chosen], bias)
        queries, proposals = self.queries_for(memory, categories, self._count(chosen.shape[1]))
        if targets is not None:
            queries.branches.append(Branch(proposals, targets, "enc"))
        return replace(queries, category_logits=logits)

    def _choose(
        self, logits: Tensor | None, memory: Memory, targets: Sequence[Targets] | None, n: int
    ) -> tuple[Tensor, Tensor]:
        """Categories of each image and how many they are, see `choose_categories`; `n` in all."""
        batch, device = len(memory.tokens), memory.tokens.device
        scores = None if logits is None else logits.detach().float().sigmoid()
        if targets is None:
            if scores is None:
                return torch.arange(n, device=device).expand(batch, -1), torch.full((batch,), n, device=device)
            return choose_categories(scores, self.top_k)
        scores = torch.rand(batch, n, device=device) if scores is None else scores
        allowed = stack_known(targets, n)
        if allowed is not None:  # an image of which nothing is known still needs queries; they get no weight
            allowed = allowed | ~allowed.any(1, keepdim=True)
        return choose_categories(scores, self.top_k, present_labels(targets, n), allowed)

    def _count(self, places: int) -> int:
        """As many queries as in training, or as many a category where inference looks for all categories."""
        if self.cem is not None or self.training:
            return self.num_queries
        return max(1, self.num_queries // min(self.top_k, places)) * places

    def queries_for(
        self, memory: Memory, categories: Categories, num_queries: int | None = None
    ) -> tuple[Queries, Predictions]:
        """Queries for chosen categories, and the encoder's predictions ``[1, B, Q, ...]`` that they start from.

        Args:
            num_queries: other than that of the training (a model without category extraction asks for all categories).
        """
        features, grid = self.token_features(memory)
        logits = self.class_head.table(features, categories.language, categories.bias)
        usable = torch.isfinite(grid).all(-1)
        token, place = self._select(logits.detach(), usable, categories.counts, num_queries or self.num_queries)
        anchors = self.boxes_of(take(features, token), take(grid, token))
        chosen_logits = take(logits, token).gather(2, place[..., None])
        slot = torch.arange(place.shape[1], device=place.device) % self.num_queries
        assert self.content is not None
        content = self.content.weight[slot] + take(categories.content, place)
        classes = categories.index.gather(1, place)
        proposals = Predictions(chosen_logits[None], anchors.sigmoid()[None], classes=classes)
        return Queries(content, anchors.detach().sigmoid(), classes=classes), proposals

    def _select(self, logits: Tensor, usable: Tensor, counts: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
        """Token and place of the category of each query, both ``[B, Q]``; fewer queries where tokens run out."""
        tokens, places = logits.shape[1:]
        num_queries = min(num_queries, tokens * int(counts.min()))
        logits = logits.float()
        score = logits.masked_fill(~usable[..., None], torch.finfo(logits.dtype).min / 2)
        if self.allocation == "adaptive":
            unchosen = torch.arange(places, device=counts.device) >= counts[:, None]
            return adaptive_slots(score, unchosen, num_queries)
        place, number = uniform_slots(num_queries, counts)
        ranked = score.topk(int(number.max()) + 1, dim=1).indices
        return ranked[torch.arange(len(ranked), device=place.device)[:, None], number, place], place


def adaptive_slots(score: Tensor, unchosen: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """The best tokens, each for its best category, at least one for every category while there are queries.

    Args:
        score: ``[B, S, T]`` of tokens and categories. unchosen: ``[B, T]`` True for filler.

    Returns:
        token and place of the category, both ``[B, Q]``, by falling score.
    """
    places = score.shape[2]
    score = score.masked_fill(unchosen[:, None], torch.finfo(score.dtype).min)
    rank = torch.zeros_like(score)
    rank.scatter_(2, score.argmax(2, keepdim=True), 1.0)  # a token with its best category
    rank.scatter_(1, score.argmax(1, keepdim=True), 2.0)  # the best token of a category
    # ranks are far apart and scores stay ordered within them: one top-k instead of sorting all pairs
    key = (rank * 1000 + score.clamp(-100, 100)).masked_fill(unchosen[:, None], float("-inf"))
    pair = key.flatten(1).topk(num_queries, dim=1).indices
    pair = pair.gather(1, score.flatten(1).gather(1, pair).argsort(dim=1, descending=True, stable=True))
    return torch.div(pair, places, rounding_mode="floor"), pair % places
