"""Checks that every reader applies: ids, categories and boxes."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polydet.data.card import DatasetCard
from polydet.data.errors import DatasetError
from polydet.data.readers.box_format import BoxForm, check_box_format

__all__ = ["check_unique", "clean_class_names", "contiguous_ids", "match_classes", "usable_boxes"]

logger = logging.getLogger(__name__)

MAX_COORDINATE = 1e6  # pixels; beyond it a number is garbage, not an image


def check_unique(ids: Any, what: str, path: Path) -> None:
    """Raise DatasetError if an id occurs twice."""
    values, first, counts = np.unique(np.asarray(ids), return_index=True, return_counts=True)
    if counts.size and counts.max() > 1:
        worst = int(np.argmax(counts > 1))
        raise DatasetError(
            f"{int((counts > 1).sum())} {what} ids occur more than once",
            file=path,
            where=f"{what} id {values[worst]} ({counts[worst]} times, first as entry {first[worst]})",
            remedy=f"give every {what} its own id",
        )


def clean_class_names(names: Sequence[str], path: Path) -> list[str]:
    """Class names of a file without blanks around them; what was taken off is logged.

    Raises DatasetError listing names that are empty, or that are the same, up to case: they would be taken for one
    another by people, by templates and by text encoders.  A card that declares its classes may use such names.
    """
    clean = [" ".join(name.split()) for name in names]
    if changed := [name for name, new in zip(names, clean) if name != new and new]:
        logger.warning("%s: blanks are taken off the class names %s", path, changed[:5])
    if not all(clean):
        empty = [k for k, name in enumerate(clean) if not name]
        raise DatasetError(
            f"class names are empty (in order, from 0: {empty[:5]})", file=path, remedy="name every class"
        )
    groups: dict[str, list[str]] = {}
    for name in clean:
        groups.setdefault(name.casefold(), []).append(name)
    if same := [group for group in groups.values() if len(group) > 1]:
        raise DatasetError(
            f"class names {same[:5]} are the same, up to case and blanks",
            file=path,
            remedy="give one id to one class; if they are different classes, declare them in the card (`classes`)",
        )
    return clean


def match_classes(
    card: DatasetCard, names: Mapping[Any, str], path: Path
) -> tuple[tuple[str, ...], dict[Any, int], tuple[Any, ...]]:
    """Contiguous id of every category of a file.

    With `card.classes` the file's categories must be among them: by id where the card gives ids (the name must then
    agree, up to case and punctuation, unless `card.options["trust_ids"]`), else by name. Without, they are taken in
    the order of the file's ids.

    Args:
        names: category id -> name as the file has them.

    Returns:
        classes; file's id -> contiguous id; the file's id of every class (a free one where the file lacks it).
    """
    fixed = {id_: card.spelling.get(name, name) for id_, name in names.items()}
    if card.classes is None:
        if not fixed:
            raise DatasetError("'categories' is empty", file=path, remedy="declare the classes")
        order = sorted(fixed)
        fixed = dict(zip(order, clean_class_names([fixed[i] for i in order], path)))
        return tuple(fixed[i] for i in order), {id_: k for k, id_ in enumerate(order)}, tuple(order)
    fixed = {id_: " ".join(name.split()) for id_, name in fixed.items()}
    exact = {name: k for k, name in enumerate(card.classes)}
    plain = Counter(map(_plain, card.classes))  # of "c" and "c++" or "a" and "A" only the very name tells which
    by_name = {_plain(name): k for k, name in enumerate(card.classes) if plain[_plain(name)] == 1}
    by_id = None if card.category_ids is None else {id_: k for k, id_ in enumerate(card.category_ids)}
    mapping: dict[Any, int] = {}
    for id_, name in fixed.items():
        k = exact.get(name, by_name.get(_plain(name))) if by_id is None else by_id.get(id_)
        trusted = by_id is None or card.options.get("trust_ids")
        if k is None or (not trusted and _plain(card.classes[k]) != _plain(name)):
            expected = "not a class of" if k is None else f"{card.classes[k]!r} in"
            raise DatasetError(
                f"category id {id_!r} is {names[id_]!r} here but {expected} card {card.name!r}",
                file=path,
                remedy="use the annotation file that belongs to the card, or a card of your own (tools/add_dataset.py)",
            )
        mapping[id_] = k
    ids: list[Any] = [None] * len(card.classes)
    for id_, k in mapping.items():
        if ids[k] is not None:
            raise DatasetError(f"categories {ids[k]!r} and {id_!r} both mean {card.classes[k]!r}", file=path)
        ids[k] = id_
    return card.classes, mapping, tuple(_fill_free(ids))


def _fill_free(ids: list[Any]) -> list[Any]:
    """Classes that a file does not declare get ids that it does not use."""
    numbers = [id_ for id_ in ids if isinstance(id_, int)]
    free = max(numbers, default=0) + 1
    for k, id_ in enumerate(ids):
        if id_ is None:
            ids[k] = free if len(numbers) or not any(ids) else f"absent {free}"
            free += 1
    return ids


def _plain(name: str) -> str:
    """A name without case, blanks and punctuation (kept where nothing else is left)."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def check_same_type(key: str, values: Any, other: str, ids: Any, path: Path, where: str) -> None:
    """Raise DatasetError if ids that refer to others are text where those are numbers, or the other way round."""
    values, ids = np.asarray(values), np.asarray(ids)
    if len(values) and len(ids) and values.dtype.kind != ids.dtype.kind:
        kinds = {"i": "a number", "U": "text"}
        found, expected = (f"{kinds[a.dtype.kind]} ({a[:1].tolist()[0]!r})" for a in (values, ids))
        raise DatasetError(
            f"{key!r} is {found} but {other} {expected}", file=path, where=where, remedy="write both as numbers"
        )


def contiguous_ids(ids: Any, mapping: Mapping[Any, int], path: Path, owners: Sequence, what: str) -> np.ndarray:
    """Contiguous ids of a column of category ids, int32 [m].

    Raises DatasetError for an id that the file's categories do not declare; `owners` are the ids of the entries.
    """
    values, inverse = np.unique(np.asarray(ids), return_inverse=True)
    if len(values):
        check_same_type("category_id", values, "'id' in categories", list(mapping), path, f"{what} id {owners[0]}")
    known = [mapping.get(value, -1) for value in values.tolist()]
    if -1 in known:
        bad = known.index(-1)
        where = int(np.argmax(inverse == bad))
        raise DatasetError(
            f"category id {values[bad]} is not declared in 'categories'",
            file=path,
            where=f"{what} id {owners[where]}",
            remedy="declare the category or correct the id",
        )
    return np.asarray(known, np.int32)[inverse.reshape(-1)] if len(known) else np.zeros(0, np.int32)


def usable_boxes(
    boxes: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    owners: Sequence,
    path: Path,
    what: str = "annotation",
    form: BoxForm = "xywh",
) -> np.ndarray:
    """Which boxes can be used, bool [m]; the others are counted and logged with their ids.

    Dropped are boxes that are not finite (or beyond 1e6 pixels), have no area, or lie outside their image. Boxes that
    stick out of the image stay and are clipped by the mapper.

    Args:
        boxes: float64 [m, 4], XYWH pixels.
        widths, heights: size of each box's image [m].
        owners: annotation ids, for messages.
        form: the file's box format, for messages.

    Raises DatasetError if the boxes fit their images in another format (`check_box_format`), or if more than half of
    at least ten are unusable.
    """
    check_box_format(boxes, widths, heights, path, form)
    x, y, w, h = boxes.T
    finite = (np.isfinite(boxes) & (np.abs(boxes) <= MAX_COORDINATE)).all(axis=1)
    with np.errstate(invalid="ignore"):
        area = (w > 0) & (h > 0)
        inside = (x < widths) & (y < heights) & (x + w > 0) & (y + h > 0)
    reasons = {
        "NaN, infinite or huge": ~finite,
        "without area": finite & ~area,
        "outside the image": finite & area & ~inside,
    }
    keep = finite & area & inside
    if keep.all():
        return keep
    dropped = int((~keep).sum())
    examples = []
    for reason, mask in reasons.items():
        if mask.any():
            first = [owners[i] for i in np.flatnonzero(mask)[:3]]
            examples.append(f"{int(mask.sum())} {reason} ({what} id {', '.join(map(str, first))})")
    summary = f"{dropped} of {len(keep)} boxes cannot be used: {'; '.join(examples)}"
    if len(keep) >= 10 and dropped > len(keep) // 2:
        raise DatasetError(
            summary, file=path, remedy="boxes must be [x, y, width, height] in pixels of the original image"
        )
    logger.warning("%s: %s; they are dropped", path, summary)
    return keep
