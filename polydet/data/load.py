"""Cards to data: reading, caching, and what Detectron2 gets to see."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from polydet.data import card as registry
from polydet.data.card import DatasetCard, find_card, prepare_cards, sync_metadata
from polydet.data.columns import AnnotationTable, Ragged, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers import READERS
from polydet.data.samplers import image_counts
from polydet.data.store import current_work, load_columns, save_columns, stored, whole_columns, working_in
from polydet.files import whole_folder

__all__ = ["class_image_counts", "get_card", "label_names", "load_card"]

logger = logging.getLogger(__name__)

_MANY_CROWDS = 0.25  # of all boxes
STORE_BYTES = 8 * 2**20  # annotations larger than this are kept as columns on disk

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
    return image_counts(table.offsets, table.labels, len(get_card(name).classes or ()))


def _load(name: str) -> tuple[AnnotationTable, DatasetCard]:
    card = find_card(name)
    prepare_cards([name])
    sources = set(card.json_files)
    stamp = (card, *(_stamp(path, path in sources) for path in card.required_files()))
    cached = _CACHE.get(name)
    if cached is None or cached[0] != stamp:
        if card.format not in READERS:
            raise DatasetError(f"card {name!r} has format {card.format!r}", remedy=f"one of {sorted(READERS)}")
        if sum(path.stat().st_size for path in sources) > STORE_BYTES or any(path.is_dir() for path in sources):
            table, full = stored(card, stamp[1:], lambda: _read(card))
        else:
            table, full = _read(card)
        _CACHE[name] = cached = (stamp, table, full)
    sync_metadata(cached[2])
    return cached[1], cached[2]


def _stamp(path: os.PathLike, source: bool) -> tuple:
    """Size and time of a file; of a folder only the time, and that only if it is what is read (not an image root)."""
    status = os.stat(path)
    if os.path.isdir(path):
        return str(path), 0, status.st_mtime_ns if source else 0
    return str(path), status.st_size, status.st_mtime_ns


def _read(card: DatasetCard) -> tuple[AnnotationTable, DatasetCard]:
    """Read every annotation file of a card and join the tables."""
    tables, full = [], card
    pairs = list(zip(card.json_files, card.image_roots, strict=True))
    for k, (path, root) in enumerate(tqdm(pairs, card.name, disable=True if len(pairs) == 1 else None)):
        table, full = _read_file(full, k, path, root, len(pairs))
        tables.append(table)
    table = tables[0] if len(tables) == 1 else concatenate(tables)
    if other := card.options.get("exclude_images_of"):
        drop = np.isin(_id_array(table), _id_array(load_card(other)))
        logger.info("%s: %d images that are in %s are left out", card.name, drop.sum(), other)
        table = table.select(np.flatnonzero(~drop))
    if not len(table):
        raise DatasetError(f"card {card.name!r} has no usable image", file=card.json_files[0])
    _warn_of_crowds(table, card)
    return table, full


def _warn_of_crowds(table: AnnotationTable, card: DatasetCard) -> None:
    """Say that many objects will not be trained on; sets that are made so have about one in a hundred to one in ten."""
    crowds = table.crowds
    if crowds > _MANY_CROWDS * len(table.labels):
        logger.warning(
            "%s: %d of %d boxes are crowds (iscrowd, difficult, group-of or invalid): training leaves them out and "
            "evaluation ignores them; if they are single objects (CVAT writes iscrowd=1 for masks), set it to 0",
            card.json_files[0],
            crowds,
            len(table.labels),
        )


def _read_file(card: DatasetCard, k: int, path: Path, root: Path, total: int) -> tuple[AnnotationTable, DatasetCard]:
    """One annotation file; of several (shards), one that an interrupted conversion finished is not read again."""
    folder = current_work().folder
    if total == 1 or folder is None:
        return READERS[card.format](card, path, root)
    done = folder / f"file-{k}"
    if (known := whole_columns(done, card)) is not None:
        return known
    part = folder / f"file-{k}.work"
    with working_in(part):
        table, full = READERS[card.format](card, path, root)
    with whole_folder(done) as whole:
        save_columns(whole, table, full)
    shutil.rmtree(part, ignore_errors=True)
    return load_columns(done, card)


def concatenate(tables: Sequence[AnnotationTable]) -> AnnotationTable:
    """Tables with the same classes as one. Raises DatasetError if an image id occurs in two of them."""
    first = tables[0]
    ids = np.concatenate([_id_array(table) for table in tables])
    if len(np.unique(ids)) < len(ids):
        raise DatasetError(f"the annotation files of card {first.name!r} share image ids")
    root = os.path.commonpath([table.image_root for table in tables])
    shifts = np.cumsum([0] + [len(t.labels) for t in tables])
    starts = [t.offsets[:-1] + shift for t, shift in zip(tables, shifts)]
    return replace(
        first,
        image_root=root,
        files=Strings.join([_below(table, root) for table in tables]),
        ids=ids if ids.dtype.kind == "i" else Strings.join([t.ids for t in tables]),  # type: ignore[misc]
        heights=np.concatenate([t.heights for t in tables]),
        widths=np.concatenate([t.widths for t in tables]),
        offsets=np.concatenate([*starts, shifts[-1:]]).astype(np.int64),
        boxes=np.concatenate([t.boxes for t in tables]),
        labels=np.concatenate([t.labels for t in tables]),
        flags=np.concatenate([t.flags for t in tables]),
        segmentations=_joined([t.segmentations for t in tables], [len(t.labels) for t in tables]),
        phrases=_joined([t.phrases for t in tables], [len(t.labels) for t in tables]),
        verified={key: Ragged.join([t.verified[key] for t in tables]) for key in first.verified},
        extras=_joined([t.extras for t in tables], [len(t) for t in tables]),
        absent=tuple(path for t in tables for path in t.absent),
    )


def _below(table: AnnotationTable, root: str) -> Strings:
    """File names relative to another root."""
    if table.image_root == root:
        return table.files
    folder = os.path.relpath(table.image_root, root)
    return Strings.of([os.path.join(folder, table.files[i].decode()) for i in range(len(table))])


def _id_array(table: AnnotationTable) -> np.ndarray:
    """Ids as numbers or byte strings."""
    return table.ids if isinstance(table.ids, np.ndarray) else np.array(list(table.ids) or [b""])[: len(table)]


def _joined(columns: Sequence[Strings | None], lengths: Sequence[int]) -> Strings | None:
    if all(column is None for column in columns):
        return None
    return Strings.join([Strings.of([b""] * n) if column is None else column for column, n in zip(columns, lengths)])


registry.set_loader(load_card)
