"""Label spaces of several datasets as one: which joint label belongs to which dataset."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from polydet.text.templates import clean_name

Merge = Literal["none", "name"]


class LabelSpace:
    """The union of datasets' label sets.

    ``merge="none"`` is the disjoint union (ScaleDet eq. 2): equal names of two datasets stay two labels.
    ``merge="name"`` lets names that are equal after lower-casing and underscores-to-spaces share a label (METR).

    Args:
        names_by_dataset: class names of each dataset in contiguous order; the order of datasets fixes the labels.
        merge: see above.

    Raises:
        ValueError: no dataset, a dataset without classes, or a dataset that has a name twice.
    """

    def __init__(self, names_by_dataset: Mapping[str, Sequence[str]], merge: Merge = "none") -> None:
        if merge not in ("none", "name"):
            raise ValueError(f"merge must be 'none' or 'name', not {merge!r}")
        if not names_by_dataset:
            raise ValueError("a label space needs at least one dataset")
        self.merge: Merge = merge
        names: list[str] = []
        owner: list[int] = []
        joint: dict[object, int] = {}
        self._mapping: dict[str, np.ndarray] = {}
        for index, (dataset, classes) in enumerate(names_by_dataset.items()):
            keys = [clean_name(name).lower() if merge == "name" else (index, name) for name in classes]
            if not keys:
                raise ValueError(f"dataset {dataset!r} has no classes")
            if len(set(keys)) < len(keys):
                twice = sorted({str(classes[i]) for i, key in enumerate(keys) if key in keys[:i]})
                raise ValueError(f"dataset {dataset!r} has class names that stand for one label twice: {twice}")
            for key, name in zip(keys, classes):
                if key not in joint:
                    joint[key] = len(names)
                    names.append(str(name))
                    owner.append(index)
            self._mapping[dataset] = np.array([joint[key] for key in keys], dtype=np.int64)
        self.names: tuple[str, ...] = tuple(names)
        self.owner: np.ndarray = np.array(owner, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {len(ids)}" for name, ids in self._mapping.items())
        return f"LabelSpace({len(self)} labels; {parts}; merge={self.merge})"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Dataset names in order."""
        return tuple(self._mapping)

    def mapping(self, dataset: str) -> np.ndarray:
        """Joint label of each contiguous id of ``dataset``: int64 ``[K_d]``.

        Raises:
            KeyError: the dataset is not part of this label space.
        """
        if dataset not in self._mapping:
            raise KeyError(f"dataset {dataset!r} is not in the label space of {list(self._mapping)}")
        return self._mapping[dataset]

    def names_of(self, dataset: str) -> tuple[str, ...]:
        """Joint names of one dataset's classes, in its contiguous order."""
        return tuple(self.names[i] for i in self.mapping(dataset))


def label_similarity(embeddings: Tensor) -> Tensor:
    """Semantic similarity of labels, ScaleDet eq. 3: cosines of a row scaled so that its minimum is 0 and itself is 1.

    Args:
        embeddings: ``[n, D]`` text embeddings, any length.

    Returns:
        ``[n, n]`` in the dtype of ``embeddings``; not symmetric, since each row has its own minimum.  A row whose
        cosines are all equal, to 1e-6, is 1 throughout.
    """
    unit = F.normalize(embeddings, dim=-1)
    cosine = (unit @ unit.T).clamp(-1.0, 1.0)
    cosine.fill_diagonal_(1.0)
    lowest = cosine.min(dim=1, keepdim=True).values
    span = 1.0 - lowest
    flat = span <= 1e-6  # rounding leaves about 1e-7 between equal rows
    return ((cosine - lowest) / span.masked_fill(flat, 1.0)).masked_fill(flat, 1.0)
