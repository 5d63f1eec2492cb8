"""Cards to data: reading, caching, and what Detectron2 gets to see."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from polydet.data import card as registry
from polydet.data.card import DatasetCard, find_card, prepare_cards, sync_metadata
from polydet.data.columns import AnnotationTable, Ragged, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers import READERS

__all__ = ["class_image_counts", "get_card", "label_names", "load_card"]

logger = logging.getLogger(__name__)

_CACHE: dict[str, tuple[tuple, AnnotationTable, DatasetCard]] = {}


def load_card(name: str) -> AnnotationTable:
    """The data of a card: a sequence of Detectron2 dataset dicts with contiguous category ids, backed by columns.

    Read once per process and kept as long as the files do not change. Generated datasets are written on first use.
    Raises DatasetError with every missing file, or naming what is wrong in a file.
    """
    return _load(name)[0]


def get_card(name: str) -> DatasetCard:
    """The card with its classes known; reads the annotation file only if the card does not declare them."""
    card = find_card(name)
    return card if card.classes is not None else _load(name)[1]


def label_names(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Class names of each card, in order; the argument of `polydet.text.LabelSpace`."""
    return {name: get_card(name).classes or () for name in names}


def class_image_counts(name: str) -> np.ndarray:
    """In how many images of a card each class occurs, int64 [K_d] (LVIS's `image_count`)."""
    table = load_card(name)
    pairs = np.unique(table.image_of_annotation() * np.int64(2**31) + table.labels)
    return np.bincount(pairs % 2**31, minlength=len(get_card(name).classes or ()))


def _load(name: str) -> tuple[AnnotationTable, DatasetCard]:
    card = find_card(name)
    prepare_cards([name])
    stamp = (card, *(_stamp(path) for path in card.required_files()))
    cached = _CACHE.get(name)
    if cached is None or cached[0] != stamp:
        if card.format not in READERS:
            raise DatasetError(f"card {name!r} has format {card.format!r}", remedy=f"one of {sorted(READERS)}")
        _CACHE[name] = cached = (stamp, *_read(card))
    sync_metadata(cached[2])
    return cached[1], cached[2]


def _stamp(path: os.PathLike) -> tuple:
    status = os.stat(path)
    return (str(path), 0, 0) if os.path.isdir(path) else (str(path), status.st_size, status.st_mtime_ns)


def _read(card: DatasetCard) -> tuple[AnnotationTable, DatasetCard]:
    """Read every annotation file of a card and join the tables."""
    tables, full = [], card
    for path, root in zip(card.json_files, card.image_roots, strict=True):
        table, full = READERS[card.format](full, path, root)
        tables.append(table)
    table = tables[0] if len(tables) == 1 else concatenate(tables)
    if other := card.options.get("exclude_images_of"):
        drop = np.isin(_id_array(table), _id_array(load_card(other)))
        logger.info("%s: %d images that are in %s are left out", card.name, drop.sum(), other)
        table = table.select(np.flatnonzero(~drop))
    if not len(table):
        raise DatasetError(f"card {card.name!r} has no usable image", file=card.json_files[0])
    return table, full


def concatenate(tables: Sequence[AnnotationTable]) -> AnnotationTable:
    """Tables with the same classes as one. Raises DatasetError if an image id occurs in two of them."""
    first = tables[0]
    ids = np.concatenate([_id_array(table) for table in tables])
    if len(np.unique(ids)) < len(ids):
        raise DatasetError(f"the annotation files of card {first.name!r} share image ids")
    root = os.path.commonpath([table.image_root for table in tables])
    files = [
        os.path.join(os.path.relpath(t.image_root, root), t.files[i].decode()) for t in tables for i in range(len(t))
    ]
    shifts = np.cumsum([0] + [len(t.labels) for t in tables])
    starts = [t.offsets[:-1] + shift for t, shift in zip(tables, shifts)]
    return replace(
        first,
        image_root=root,
        files=Strings.of(files),
        ids=ids if ids.dtype.kind == "i" else Strings.of(ids.tolist()),
        heights=np.concatenate([t.heights for t in tables]),
        widths=np.concatenate([t.widths for t in tables]),
        offsets=np.concatenate([*starts, shifts[-1:]]).astype(np.int64),
        boxes=np.concatenate([t.boxes for t in tables]),
        labels=np.concatenate([t.labels for t in tables]),
        flags=np.concatenate([t.flags for t in tables]),
        segmentations=_joined([t.segmentations for t in tables], [len(t.labels) for t in tables]),
        phrases=_joined([t.phrases for t in tables], [len(t.labels) for t in tables]),
        verified={
            key: Ragged.of([t.verified[key][i].tolist() for t in tables for i in range(len(t))])
            for key in first.verified
        },
        extras=None if first.extras is None else Strings.of([x for t in tables for x in (t.extras or ())]),
    )


def _id_array(table: AnnotationTable) -> np.ndarray:
    if isinstance(table.ids, np.ndarray):
        return table.ids
    return np.array([table.ids[i].decode() for i in range(len(table))])


def _joined(columns: Sequence[Strings | None], lengths: Sequence[int]) -> Strings | None:
    if all(column is None for column in columns):
        return None
    return Strings.of([x for column, n in zip(columns, lengths) for x in (column if column is not None else [b""] * n)])


registry.set_loader(load_card)
