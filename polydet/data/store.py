"""Columns on disk: annotations are converted once, then memory-mapped by every process and worker."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polydet.data.arrays import DamagedArrays, load_arrays, read_meta, save_arrays
from polydet.data.card import DatasetCard, datasets_root
from polydet.data.columns import AnnotationTable, Ragged, Strings
from polydet.files import locked, remove_leftovers, text_digest, whole_file, whole_folder

__all__ = [
    "Work",
    "current_work",
    "fingerprint",
    "load_columns",
    "save_columns",
    "store_root",
    "stored",
    "whole_columns",
    "working_in",
]

logger = logging.getLogger(__name__)

VERSION = 3  # raise when columns or readers change what they mean
_META = "meta.json"
_PLAIN = ("heights", "widths", "offsets", "boxes", "labels", "flags")
_STRINGS = ("files", "segmentations", "phrases", "extras")


def store_root() -> Path:
    """Where columns are kept: POLYDET_CACHE, else `.columns` in the datasets folder, else (read-only) ~/.cache."""
    if folder := os.environ.get("POLYDET_CACHE"):
        return Path(folder)
    root = datasets_root()
    if os.access(root, os.W_OK):
        return root / ".columns"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "polydet"


def fingerprint(card: DatasetCard, stamp: tuple) -> str:
    """Digest of what the columns depend on: the card, its files' sizes and times, and the version of this code."""
    fields = {key: str(value) for key, value in sorted(vars(card).items()) if key not in ("about", "url", "licence")}
    text = json.dumps([VERSION, fields, [str(part) for part in stamp]], sort_keys=True)
    return text_digest(text)[:16]


class Work:
    """Results of the parts of a long conversion; with a folder they outlive an interruption.

    Args:
        folder: where parts are kept; None: nowhere, every part is computed.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def has(self, key: str) -> bool:
        """Whether an earlier run finished a part."""
        return self.folder is not None and (self.folder / f"{key}.npz").exists()

    def part(self, key: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of a part, read back if an earlier run finished it."""
        if self.folder is None:
            return dict(compute())
        path = self.folder / f"{key}.npz"
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as saved:
                    return dict(saved)
            except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
                logger.warning("%s is damaged (%s); it is computed again", path, error)
        arrays = dict(compute())
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return arrays


_WORK: ContextVar[Work | None] = ContextVar("conversion", default=None)


def current_work() -> Work:
    """Where the running conversion keeps its parts (nowhere, if none is running)."""
    return _WORK.get() or Work()


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Keep the parts of a conversion in a folder, made if it is not there."""
    folder.mkdir(exist_ok=True)
    token = _WORK.set(Work(folder))
    try:
        yield
    finally:
        _WORK.reset(token)


def stored(
    card: DatasetCard, stamp: tuple, read: Callable[[], tuple[AnnotationTable, DatasetCard]]
) -> tuple[AnnotationTable, DatasetCard]:
    """The memory-mapped columns of a card, converted by `read` if they are not there or its files have changed.

    One process converts, others wait. What an interrupted conversion finished is kept and used by the next. Columns
    that are damaged are converted again; a disk that takes none costs a warning and memory.
    """
    root = store_root()
    name = f"{card.name}-{fingerprint(card, stamp)}"
    table, full = whole_columns(root / name, card) or _converted(card, root, name, read)
    if table.absent:
        logger.warning(
            "%s: images that were not on disk are left out (such as %s); they are looked for at every start",
            card.name,
            table.absent[0],
        )
    return table, full


def whole_columns(target: Path, card: DatasetCard) -> tuple[AnnotationTable, DatasetCard] | None:
    """Columns that are there, up to date and whole; None, and a warning where they are damaged, if not."""
    try:
        return load_columns(target, card) if _up_to_date(target) else None
    except DamagedArrays as error:
        logger.warning("%s: %s; it is converted again", card.name, error)
    except OSError as error:
        logger.warning("%s: %s cannot be read (%s); it is converted again", card.name, target, error)
    return None


def _converted(
    card: DatasetCard, root: Path, name: str, read: Callable[[], tuple[AnnotationTable, DatasetCard]]
) -> tuple[AnnotationTable, DatasetCard]:
    """Columns made by this process, or by another that held the lock."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(root / f".{card.name}.lock"))
        except OSError as error:
            return _in_memory(card, root, error, read)
        if (known := whole_columns(root / name, card)) is not None:
            return known
        logger.info("converting %s to columns in %s (once)", card.name, root / name)
        try:
            table, full = _convert(root / name, read)
        except OSError as error:
            return _in_memory(card, root, error, read)
        _remove_others(root, card.name, name)
        return whole_columns(root / name, card) or (table, full)


def _in_memory(
    card: DatasetCard, root: Path, error: OSError, read: Callable[[], tuple[AnnotationTable, DatasetCard]]
) -> tuple[AnnotationTable, DatasetCard]:
    logger.warning(
        "%s: columns cannot be kept in %s (%s): every process keeps its own copy in memory; "
        "set POLYDET_CACHE to a folder with space",
        card.name,
        root,
        error,
    )
    return read()


def _up_to_date(folder: Path) -> bool:
    """Whether columns are there and no image that was missing when they were made has come since.

    Raises DamagedArrays if what describes them is not as it was written.
    """
    try:
        meta = read_meta(folder, _META)
    except FileNotFoundError:
        return False
    return not any(map(os.path.exists, meta.get("absent", ())))


def _convert(
    target: Path, read: Callable[[], tuple[AnnotationTable, DatasetCard]]
) -> tuple[AnnotationTable, DatasetCard]:
    work = target.with_name(f".{target.name}.parts")
    with working_in(work):
        table, card = read()
    remove_leftovers(target.parent, target.name)
    with whole_folder(target) as folder:  # one may be there, damaged or made while images were missing
        save_columns(folder, table, card)
    shutil.rmtree(work, ignore_errors=True)
    return table, card


def _remove_others(root: Path, card_name: str, keep: str) -> None:
    """Columns of the same card from files that have changed since; a process that still maps them keeps them."""
    for path in [*root.glob(f"{card_name}-*"), *root.glob(f".{card_name}-*.parts")]:
        digest = path.name.removeprefix(".").removesuffix(".parts").removeprefix(f"{card_name}-")
        if len(digest) == 16 and keep not in path.name:
            shutil.rmtree(path, ignore_errors=True)


def save_columns(folder: Path, table: AnnotationTable, card: DatasetCard) -> None:
    """Write a table's columns as .npy files and what else it needs as `meta.json` into an empty folder."""
    arrays = {name: getattr(table, name) for name in _PLAIN}
    for name in _STRINGS:
        if (strings := getattr(table, name)) is not None:
            arrays |= {f"{name}.data": strings.data, f"{name}.offsets": strings.offsets}
    if isinstance(table.ids, Strings):
        arrays |= {"ids.data": table.ids.data, "ids.offsets": table.ids.offsets}
    else:
        arrays["ids"] = table.ids
    for key, lists in table.verified.items():
        arrays |= {f"verified.{key}.values": lists.values, f"verified.{key}.offsets": lists.offsets}
    meta = {
        "image_root": table.image_root,
        "classes": card.classes,
        "category_ids": card.category_ids,
        "absent": table.absent,
    }
    save_arrays(folder, arrays, meta, _META)


def load_columns(folder: Path, card: DatasetCard) -> tuple[AnnotationTable, DatasetCard]:
    """A table whose columns are memory-mapped, and the card with classes filled in.

    Raises DamagedArrays if a column is not as it was written.
    """
    arrays, meta = load_arrays(folder, _META)

    def strings(name: str) -> Strings | None:
        if f"{name}.data" not in arrays:
            return None
        return Strings(arrays[f"{name}.data"], arrays[f"{name}.offsets"])

    verified = sorted(name.split(".")[1] for name in arrays if name.endswith(".values"))
    columns: dict[str, Any] = {name: arrays[name] for name in _PLAIN} | {name: strings(name) for name in _STRINGS}
    ids = strings("ids")
    table = AnnotationTable(
        name=card.name,
        image_root=meta["image_root"],
        ids=arrays["ids"] if ids is None else ids,
        verified={key: Ragged(arrays[f"verified.{key}.values"], arrays[f"verified.{key}.offsets"]) for key in verified},
        absent=tuple(meta.get("absent", ())),
        **columns,
    )
    ids_of_classes = None if meta["category_ids"] is None else tuple(meta["category_ids"])
    return table, replace(card, classes=tuple(meta["classes"]), category_ids=ids_of_classes)
