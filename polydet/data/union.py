"""Several cards as one dataset with joint label ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from polydet.data.columns import AnnotationTable
from polydet.data.errors import DatasetError
from polydet.data.load import label_names, load_card
from polydet.text import LabelSpace

__all__ = ["Union", "label_space_of"]

_VERIFIED = ("pos_category_ids", "neg_category_ids", "not_exhaustive_category_ids")


def label_space_of(datasets: Sequence[str], merge: Literal["none", "name"] = "none") -> LabelSpace:
    """The joint labels of cards, in the order given; `merge="name"` lets equal names share a label."""
    if isinstance(datasets, str):
        raise TypeError(f"datasets must be a list of card names, not the string {datasets!r}")
    return LabelSpace(label_names(list(datasets)), merge)


class Union:
    """The concatenation of cards. Item i is a dataset dict whose category ids are labels of `label_space`.

    Args:
        datasets: card names, in order.
        merge: see `label_space_of`.
        filter_empty: leave out images without any annotation that is not a crowd (federated cards and image-text
            pairs too; pass False to keep all).
    """

    def __init__(self, datasets: Sequence[str], merge: Literal["none", "name"] = "none", filter_empty: bool = True):
        self.label_space = label_space_of(datasets, merge)
        self.datasets = tuple(datasets)
        self.tables: list[AnnotationTable] = [load_card(name) for name in datasets]
        self._setup(filter_empty)

    @classmethod
    def of(cls, tables: Sequence[AnnotationTable], label_space: LabelSpace, filter_empty: bool = True) -> Union:
        """The union of tables that are loaded already; `label_space` knows them by their names."""
        union = cls.__new__(cls)
        union.label_space, union.tables = label_space, list(tables)
        union.datasets = tuple(table.name for table in tables)
        union._setup(filter_empty)
        return union

    def _setup(self, filter_empty: bool) -> None:
        self._maps = [self.label_space.mapping(name) for name in self.datasets]
        self._rows = [
            np.flatnonzero(table.usable_images()) if filter_empty else np.arange(len(table)) for table in self.tables
        ]
        for name, table, rows in zip(self.datasets, self.tables, self._rows):
            if not len(rows):
                raise DatasetError(
                    f"dataset {name!r} has {len(table)} images but none with an annotation to train on "
                    f"({len(table.labels)} boxes, {table.crowds} of them crowds)",
                    remedy="if the crowds are single objects (CVAT writes iscrowd=1 for masks), set iscrowd to 0"
                    if table.crowds
                    else "check its annotation file, or keep empty images with filter_empty=False",
                )
        self._starts = np.cumsum([0] + [len(rows) for rows in self._rows])
        self.num_labels = len(self.label_space)
        self.owner = np.repeat(np.arange(len(self.tables), dtype=np.int32), np.diff(self._starts))

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [n + 1]; the labels of image i are `labels[offsets[i]:offsets[i + 1]]`."""
        return self._joint_labels()[0]

    @cached_property
    def labels(self) -> np.ndarray:
        """Joint label of every annotation, int32 [m]."""
        return self._joint_labels()[1]

    def release(self) -> None:
        """Forget the columns that only samplers look at (made again when asked for)."""
        self.__dict__.pop("offsets", None)
        self.__dict__.pop("labels", None)

    def _joint_labels(self) -> tuple[np.ndarray, np.ndarray]:
        parts, counts = [], []
        for table, mapping, rows in zip(self.tables, self._maps, self._rows):
            kept = table if len(rows) == len(table) else table.select_labels(rows)
            parts.append(mapping.astype(np.int32)[kept.labels])
            counts.append(np.diff(kept.offsets))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        self.offsets, self.labels = offsets, np.concatenate(parts)
        return self.offsets, self.labels

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Which dataset an image belongs to, and its row there."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return which, int(self._rows[which][index - self._starts[which]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        which, row = self.locate(index)
        record, mapping = self.tables[which].record(row), self._maps[which]
        for annotation in record["annotations"]:
            annotation["category_id"] = int(mapping[annotation["category_id"]])
        for key in _VERIFIED:
            if key in record:
                record[key] = mapping[record[key]].tolist()
        return record

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Heights and widths of all images."""
        heights = np.concatenate([table.heights[rows] for table, rows in zip(self.tables, self._rows)])
        widths = np.concatenate([table.widths[rows] for table, rows in zip(self.tables, self._rows)])
        return heights, widths
