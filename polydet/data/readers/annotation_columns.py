"""Annotations of COCO-like json as columns, piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pycocotools.mask as mask_utils

from polydet.data.columns import CROWD, GROUP_OF, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers.checks import check_same_type, check_unique, contiguous_ids, usable_boxes
from polydet.data.readers.json_file import column
from polydet.data.readers.json_stream import JsonSections
from polydet.data.store import current_work

__all__ = ["annotation_columns", "raw_columns", "valid_mask"]

logger = logging.getLogger(__name__)

Phrase = Callable[[dict], str]


def raw_columns(
    sections: JsonSections, path: Path, phrase_of: Phrase | None = None, optional: bool = False
) -> dict[str, Any]:
    """The section `annotations` as unsorted columns: id, image_id, category_id, bbox, flags, masks and phrases.

    A piece that an interrupted conversion finished is not converted again.
    """
    work, first, parts = current_work(), 0, []
    for number, items in enumerate(sections.pieces("annotations", optional)):
        parts.append(work.part(f"annotations-{number}", partial(_piece, items, first, path, phrase_of)))
        first += len(items)
    joined: dict[str, Any] = {}
    for key in ("id", "image_id", "category_id"):
        arrays = [part[key] for part in parts if len(part[key])] or [parts[0][key]]
        if len({array.dtype.kind for array in arrays}) > 1:
            raise DatasetError(f"{key!r} is a number in some annotations and text in others", file=path)
        joined[key] = np.concatenate(arrays)
    for key in ("bbox", "flags"):
        joined[key] = np.concatenate([part[key] for part in parts])
    given = {bool(part["has_id"]) for part in parts if len(part["flags"])}
    if len(given) > 1:
        raise DatasetError("'id' is missing in some annotations", file=path, remedy="give all of them ids, or none")
    joined["has_id"] = given == {True}
    for key in ("masks", "phrases"):
        texts = [Strings(part[f"{key}.data"], part[f"{key}.offsets"]) for part in parts]
        joined[key] = Strings.join(texts)
    return joined


def _piece(items: list[dict], first: int, path: Path, phrase_of: Phrase | None) -> Mapping[str, np.ndarray]:
    """Columns of some annotations, of which the first is at position `first` of the file."""
    annotations = partial(column, items, path=path, name="annotations", first=first)
    has_id = any("id" in item for item in items)
    masks = [_mask_text(item.get("segmentation")) for item in items]
    broken = [item.get("id") for item, text in zip(items, masks) if not text and item.get("segmentation")]
    if broken:
        logger.warning(
            "%s: %d annotations have no valid mask (annotation id %s); their boxes are kept",
            path,
            len(broken),
            broken[:3],
        )
    phrases = Strings(np.zeros(0, np.uint8), np.zeros(len(items) + 1, np.int64))
    if phrase_of is not None:
        phrases = Strings.of([phrase_of(item) for item in items])
        if empty := int((np.diff(phrases.offsets) == 0).sum()):
            logger.warning("%s: %d of %d boxes have no phrase", path, empty, len(phrases))
    crowd = annotations("iscrowd", "int", default=0) != 0
    group = np.array([bool(item.get("isgroupof")) for item in items], bool)
    texts = {"masks": Strings.of(masks), "phrases": phrases}
    ids = annotations("id", "id") if has_id else np.zeros(len(items), np.int64)
    return {
        "has_id": np.array(has_id),
        "id": np.asarray(ids),
        "image_id": np.asarray(annotations("image_id", "id")),
        "category_id": np.asarray(annotations("category_id", "id")),
        "bbox": annotations("bbox", "box"),
        "flags": ((crowd | group) * CROWD + group * GROUP_OF).astype(np.uint8),
        **{f"{key}.data": strings.data for key, strings in texts.items()},
        **{f"{key}.offsets": strings.offsets for key, strings in texts.items()},
    }


def annotation_columns(
    raw: dict[str, Any],
    image_ids: Any,
    rank: np.ndarray,
    mapping: dict[Any, int],
    path: Path,
    sizes: tuple[np.ndarray, np.ndarray],
    with_phrases: bool,
) -> dict[str, Any]:
    """Raw columns checked against images and categories, unusable boxes dropped, sorted by image.

    Args:
        image_ids: ids in the order of the file; `rank[i]` is the row of image i in the table.
        sizes: heights and widths in the order of the table.
    """
    owners = raw["id"] if raw["has_id"] else range(len(raw["flags"]))
    if raw["has_id"]:
        check_unique(raw["id"], "annotation", path)
    image = rank[_image_index(raw["image_id"], image_ids, owners, path)]
    labels = contiguous_ids(raw["category_id"], mapping, path, owners, "annotation")
    keep = usable_boxes(raw["bbox"], sizes[1][image], sizes[0][image], owners, path)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image[rows], kind="stable")]
    counts = np.bincount(image[rows], minlength=len(rank))
    return {
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "boxes": raw["bbox"][rows].astype(np.float32),
        "labels": labels[rows],
        "flags": raw["flags"][rows],
        "segmentations": raw["masks"].take(rows) if len(raw["masks"].data) else None,
        "phrases": raw["phrases"].take(rows) if with_phrases else None,
    }


def _image_index(values: np.ndarray, image_ids: Any, owners: Sequence, path: Path) -> np.ndarray:
    """Position in the file's images of every annotation's image."""
    image_ids = np.asarray(image_ids)
    if not len(values):
        return np.zeros(0, np.int64)
    check_same_type("image_id", values, "'id' in images", image_ids, path, f"annotation id {owners[0]}")
    if not len(image_ids):
        bad = np.zeros(1, np.int64)
    else:
        order = np.argsort(image_ids, kind="stable")
        place = np.minimum(np.searchsorted(image_ids, values, sorter=order), len(order) - 1)
        index = order[place]
        bad = np.flatnonzero(image_ids[index] != values)
    if bad.size:
        raise DatasetError(
            f"{bad.size} annotations belong to images that are not in 'images' (image id {values[bad[0]]})",
            file=path,
            where=f"annotation id {owners[bad[0]]}",
            remedy="add the images or remove the annotations",
        )
    return index


def _mask_text(value: Any) -> bytes:
    """A mask as json; empty where there is no valid one."""
    valid = valid_mask(value)
    return b"" if valid is None else orjson.dumps(valid)


def valid_mask(value: Any) -> Any:
    """What is usable of a COCO `segmentation`: polygons of three points or more, or a run-length mask (compressed, as
    Detectron2 wants it); else None."""
    if isinstance(value, dict):
        return _compressed(value)
    if isinstance(value, list):
        return [polygon for polygon in value if _is_polygon(polygon)] or None
    return None


def _compressed(value: dict) -> Any:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(x) is int and x > 0 for x in size) and counts):
        return None
    if isinstance(counts, str):
        return value
    if not (isinstance(counts, list) and all(type(x) is int and 0 <= x < 2**31 for x in counts)):
        return None
    if sum(counts) != size[0] * size[1]:
        return None
    packed = mask_utils.frPyObjects(value, *size)
    return {"size": size, "counts": packed["counts"].decode()}


def _is_polygon(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and all(type(x) in (int, float) and abs(x) < 1e6 for x in value)
    )
