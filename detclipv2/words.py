"""The text side of a batch: concepts of all processes, encoded once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from detclipv2.alignment import unique_concepts
from detclipv2.gather import gather_objects, gather_rows, share_of
from polydet.text import TextTower


@dataclass(frozen=True)
class BatchWords:
    """Distinct concepts of the global batch and their embeddings.

    `names` U strings, the same on every process; `rows` `[U, D]` unit rows with gradient; `texts` per image of the
    global batch its concepts, ranks in order; `first` this process's first image among them.
    """

    names: list[str]
    rows: Tensor
    texts: list[list[str]]
    first: int

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each name."""
        return {name: i for i, name in enumerate(self.names)}

    def select(self, names: Sequence[str]) -> Tensor:
        """Rows of names, `[len(names), D]`."""
        index = self.index
        return self.rows[torch.tensor([index[name] for name in names], dtype=torch.int64, device=self.rows.device)]

    def members(self) -> Tensor:
        """Rows that each text consists of, int64 `[T, M]`, filled with -1."""
        index = self.index
        lists = [torch.tensor([index[name] for name in text]) for text in self.texts]
        padded = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)
        return padded.to(self.rows.device)


def encode_batch(
    concepts: Sequence[Sequence[str]], tower: TextTower, sentence: Callable[[str], str] = lambda name: name
) -> BatchWords:
    """Encode the concepts of the global batch; each process does its share and gathers the others' with gradient.

    Args:
        concepts: of each image of this process.
        tower: sentences -> unit rows.
        sentence: what is encoded for a concept.
    """
    parts = gather_objects([list(names) for names in concepts])
    texts = [names for part in parts for names in part]
    first = sum(map(len, parts[: _rank(parts)]))
    names = unique_concepts(texts)
    rows = gather_rows(tower([sentence(name) for name in share_of(names)]))[0][: len(names)]
    return BatchWords(names, rows, texts, first)


def _rank(parts: Sequence[object]) -> int:
    return torch.distributed.get_rank() if len(parts) > 1 else 0
