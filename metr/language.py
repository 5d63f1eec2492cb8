"""Language embeddings of the categories, and the label head whose queries answer for one of them each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from polydet.detr import Queries, WordLabels
from polydet.detr.decoder import per_layer
from polydet.layers import prior_bias, xavier_reset
from polydet.text import Vocabulary, clean_name

logger = logging.getLogger(__name__)


def category_key(name: str) -> str:
    """What two names that stand for one category have in common: words in lower case."""
    return clean_name(name).lower()


class LanguageEmbeddings(nn.Module):
    """Text embeddings of the vocabulary, projected to the width of the detector.

    The rows of the training categories are parameters. A word that was trained keeps its row in any vocabulary; a new
    one enters with the text encoder's embedding.

    Args:
        vocabulary: training categories, K of them; no two may mean the same (`category_key`).
        dim: width C of the detector.
        learnable: train the embeddings, or keep those of the encoder (the dagger of table 4).
        heads: names of the dot-product heads; each has a learnable bias a category.
        scale: factor of the unit rows at the start. With 1 a feature's logit hardly depends on the category at first;
            short trainings from scratch want about ``sqrt(D)``.

    Raises:
        ValueError: two names that mean the same.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        dim: int = 256,
        heads: Sequence[str] = ("decoder",),
        learnable: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        check_distinct(vocabulary.names)
        self._row = {category_key(name): i for i, name in enumerate(vocabulary.names)}
        self.weight = nn.Parameter(vocabulary.embeddings.float() * scale, requires_grad=learnable)
        self.project = nn.Linear(vocabulary.dim, dim)
        self.biases = nn.ParameterDict(
            {head: nn.Parameter(torch.full((len(vocabulary),), prior_bias())) for head in heads}
        )
        self.rows: Tensor | None
        self.new: Tensor | None
        # None: the training categories
        self.register_buffer("rows", None, persistent=False)
        self.register_buffer("new", None, persistent=False)

    def __len__(self) -> int:
        """Categories n of the current vocabulary."""
        return len(self.weight) if self.rows is None else len(self.rows)

    @property
    def restricted(self) -> bool:
        """Whether another vocabulary than that of the training is set."""
        return self.rows is not None

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """Training category of each name, -1 for a new one."""
        return [self._row.get(category_key(name), -1) for name in names]

    def use(self, vocabulary: Vocabulary | None) -> None:
        """Speak of these categories from now on; None: those of the training."""
        if vocabulary is None:
            self.rows = self.new = None
            return
        check_distinct(vocabulary.names)
        rows = self.rows_of(vocabulary.names)
        fresh = [name for name, row in zip(vocabulary.names, rows) if row < 0]
        if fresh:
            logger.warning(
                "%d of %d categories were not trained and rest on their text embeddings alone: %s%s",
                len(fresh),
                len(rows),
                ", ".join(fresh[:8]),
                " ..." if len(fresh) > 8 else "",
            )
        self.rows = torch.tensor(rows, device=self.weight.device)
        self.new = vocabulary.embeddings.to(self.weight) * self.scale

    def forward(self) -> Tensor:
        """Projected embeddings e ``[n, C]`` of the current vocabulary."""
        if self.rows is None or self.new is None:
            return self.project(self.weight)
        trained = (self.rows >= 0)[:, None]
        return self.project(torch.where(trained, self.weight[self.rows.clamp(min=0)], self.new))

    def bias(self, head: str) -> Tensor:
        """Bias b ``[n]`` of a head for the current vocabulary; new words get the mean of the trained ones."""
        bias = self.biases[head]
        return bias if self.rows is None else torch.where(self.rows >= 0, bias[self.rows.clamp(min=0)], bias.mean())


def check_distinct(names: Sequence[str]) -> None:
    """Raises ValueError for names of which two mean the same category."""
    seen: dict[str, str] = {}
    for name in names:
        key = category_key(name)
        if key in seen:
            raise ValueError(
                f"{name!r} and {seen[key]!r} are the same category: give it once (several datasets that share names "
                "need a label space with merge='name')"
            )
        seen[key] = name


class DotProduct(nn.Module):
    """``Linear(x) . e_c / sqrt(C) + b_c`` (eq. 3; line 4 of algorithm 1, whose MLP is read as C to C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        xavier_reset(self.linear)

    def forward(self, x: Tensor, e: Tensor, bias: Tensor) -> Tensor:
        """Logit of each feature for its own category.

        Args:
            x, e: ``[..., C]``, broadcast. bias: ``[...]``.

        Returns:
            ``[...]``, float32 at least.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        return (self.linear(x).to(dtype) * e.to(dtype)).sum(-1) / x.shape[-1] ** 0.5 + bias.to(dtype)

    def table(self, x: Tensor, e: Tensor, bias: Tensor) -> Tensor:
        """Logits of every feature for every category: ``[B, S, C]``, ``[B, T, C]``, ``[B, T]`` to ``[B, S, T]``."""
        logits = self.linear(x) @ e.transpose(1, 2) / x.shape[-1] ** 0.5
        return logits + bias[:, None].to(logits.dtype)


class CategoryLabels(WordLabels):
    """Matchability of each query for its own category: one logit a query (algorithm 1).

    Args:
        heads, learnable, scale: see `LanguageEmbeddings`, which `start` makes.
    """

    one_category = True
    language: LanguageEmbeddings

    def __init__(
        self, heads: Sequence[str] = ("decoder", "encoder"), learnable: bool = True, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.names, self.learnable, self.scale = tuple(heads), learnable, scale

    def start(self, vocabulary: Vocabulary, dim: int) -> None:
        """See `WordLabels`."""
        self.language = LanguageEmbeddings(vocabulary, dim, self.names, self.learnable, self.scale)

    def use(self, vocabulary: Vocabulary | None) -> None:
        """See `WordLabels`."""
        self.language.use(vocabulary)

    def new_head(self, dim: int) -> DotProduct:
        """See `LabelHead`."""
        return DotProduct(dim)

    def forward(self, hidden: Tensor, first_layer: int, queries: Queries) -> Tensor:
        """Matchability ``[L, B, Q, 1]`` of each query for its category."""
        if queries.classes is None:
            raise ValueError(
                "CategoryLabels scores a query for one category: use a CategoryQuerySource, which names it"
            )
        e = self.language()[queries.classes]
        bias = self.language.bias("decoder")[queries.classes]
        heads = [per_layer(self, first_layer + i) for i in range(len(hidden))]
        return torch.stack([head(h, e, bias) for head, h in zip(heads, hidden)])[..., None]

    def contents(self) -> Tensor:
        """See `LabelHead`: the projected language embeddings."""
        return self.language()

    def address(self, queries: Queries, classes: Tensor) -> Queries:
        """See `LabelHead`: a query's content names its category."""
        return replace(queries, content=queries.content + self.language()[classes], classes=classes)
