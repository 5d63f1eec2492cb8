"""What a DETR says of a query's label: logits of fixed classes, or of any words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polydet.layers import prior_bias
from polydet.text import TextClassifier, Vocabulary

from .decoder import per_layer
from .structures import Queries


class LabelHead(nn.Module):
    """Reads class logits from query features, by one module for all decoder layers or one each.

    A sequence of those modules, as ``nn.ModuleList`` is; beside them it may hold what they share.

    `DETR` adds the modules when it is built; a two-stage query source without a class head of its own gets one more.
    """

    one_category = False
    """Whether each query is scored for one category, its `Queries.classes`, instead of for all."""

    def add_heads(self, dim: int, count: int) -> None:
        """`count` modules for features of `dim` channels."""
        for _ in range(count):
            self.add_module(str(len(self)), self.new_head(dim))

    def __len__(self) -> int:
        """Number of modules."""
        return sum(name.isdigit() for name in self._modules)

    def __getitem__(self, index: int) -> nn.Module:
        """The module of a layer."""
        return self.get_submodule(str(range(len(self))[index]))

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def new_head(self, dim: int) -> nn.Module:
        """One module for features of `dim` channels, with its first weights."""

    def read(self, head: nn.Module, features: Tensor) -> Tensor:
        """Logits ``[..., K]`` of all classes of features ``[..., C]``, by a module of `new_head`."""
        return head(features)

    def forward(self, hidden: Tensor, first_layer: int, queries: Queries) -> Tensor:
        """Logits ``[L, B, Q, K]`` of query features ``[L, B, Q, C]`` whose first layer is `first_layer`."""
        if len(self) == 1:
            return self.read(self[0], hidden)
        heads = [per_layer(self, first_layer + i) for i in range(len(hidden))]
        return torch.stack([self.read(head, h) for head, h in zip(heads, hidden)])

    def embeddings(self, hidden: Tensor, first_layer: int) -> Tensor | None:
        """Query features as unit rows among the texts, ``[L, B, Q, D]``; None for a head that has no such space."""
        return None

    def contents(self) -> Tensor | None:
        """What a query that looks for a class has in its content, ``[K, C]``; None where classes have no such rows."""
        return None

    def address(self, queries: Queries, classes: Tensor) -> Queries:
        """Queries that answer for the categories ``[B, Q]``; only where `one_category` holds.

        Raises:
            TypeError: a head that scores all classes.
        """
        raise TypeError(f"{type(self).__name__} scores every query for all classes")


class ClosedLabels(LabelHead):
    """A linear layer with one row a class.

    Args:
        num_classes: K.
        background: one more row, in the last place, for background (softmax losses); otherwise every class starts at
            the prior of 0.01.
    """

    def __init__(self, num_classes: int, background: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.background = background

    def new_head(self, dim: int) -> nn.Linear:
        """See `LabelHead`."""
        head = nn.Linear(dim, self.num_classes + int(self.background))
        if not self.background:
            nn.init.constant_(head.bias, prior_bias())
        return head


class WordLabels(LabelHead):
    """A head whose classes are words: those of the training until `use` names others.

    `OpenDETR` calls `start` with the vocabulary of the training before heads are added.
    """

    @abstractmethod
    def start(self, vocabulary: Vocabulary, dim: int) -> None:
        """Take the training vocabulary; `dim` is the detector's width C. Called once."""

    @abstractmethod
    def use(self, vocabulary: Vocabulary | None) -> None:
        """Speak of these words from now on; None: those of the training."""


class TextLabels(WordLabels):
    """Cosines of query features and text embeddings, scaled and shifted (ScaleDet, eqs. 5 and 6; Detic's bias).

    Args:
        scale: factor of the cosines, 1 / tau (1/50 in ScaleDet and Detic).
        learn_scale: let the factor train, as CLIP does.
        bias: start of the scalar that is added to every logit (Detic's, where a sigmoid starts at 0.01); None: none.
    """

    def __init__(self, scale: float = 50.0, learn_scale: bool = False, bias: float | None = -4.6) -> None:
        super().__init__()
        self.scale, self.learn_scale, self.bias = scale, learn_scale, bias
        self.text: Tensor
        self.train_text: Tensor

    def start(self, vocabulary: Vocabulary, dim: int) -> None:
        """See `WordLabels`; the embeddings are constants and no part of a checkpoint."""
        self.register_buffer("train_text", vocabulary.embeddings.clone(), persistent=False)
        self.register_buffer("text", vocabulary.embeddings.clone(), persistent=False)

    def use(self, vocabulary: Vocabulary | None) -> None:
        """See `WordLabels`."""
        self.text = self.train_text if vocabulary is None else vocabulary.embeddings.to(self.train_text)

    def new_head(self, dim: int) -> TextClassifier:
        """See `LabelHead`. Raises ValueError where no vocabulary was given."""
        if not hasattr(self, "train_text"):
            raise ValueError("TextLabels has no words yet: build the detector as OpenDETR, which gives it a vocabulary")
        return TextClassifier(dim, self.train_text.shape[1], self.scale, self.learn_scale, self.bias)

    def read(self, head: nn.Module, features: Tensor) -> Tensor:
        """See `LabelHead`."""
        assert isinstance(head, TextClassifier)
        return head.logits(head(features), self.text)

    def embeddings(self, hidden: Tensor, first_layer: int) -> Tensor:
        """See `LabelHead`."""
        heads = [per_layer(self, first_layer + i) for i in range(len(hidden))]
        return torch.stack([head(h) for head, h in zip(heads, hidden)])
