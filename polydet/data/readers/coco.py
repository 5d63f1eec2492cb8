"""COCO and LVIS json files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from polydet.data.card import DatasetCard
from polydet.data.columns import CROWD, GROUP_OF, AnnotationTable, Ragged, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers.checks import check_unique, contiguous_ids, match_classes, usable_boxes
from polydet.data.readers.json_file import column, load_json, safe_relative_path, section

__all__ = ["read_coco", "read_grounding", "read_lvis", "read_openimages_json"]

logger = logging.getLogger(__name__)


def read_coco(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """A COCO json file (instances, any category ids) as columns; images in the order of their ids.

    Returns the table and the card with classes and category ids filled in. Raises DatasetError; see
    `docs/datasets.md` for what is an error and what is a counted drop.
    """
    document = load_json(path)
    images = section(document, "images", path)
    names = column(images, "file_name", "str", path, "images")
    return _read(card, path, image_root, document, images, names)


def read_lvis(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """An LVIS v1 json file as columns, with `pos_`, `neg_` and `not_exhaustive_category_ids` per image.

    The image is at the last two parts of `coco_url` (`train2017/000000000009.jpg`) under `image_root`. Positive are
    the classes annotated in the image.
    """
    document = load_json(path)
    images = section(document, "images", path)
    urls = column(images, "coco_url", "str", path, "images")
    for i, url in enumerate(urls):
        if url.count("/") < 1:
            raise DatasetError(f"'coco_url' {url!r} has no folder", file=path, where=f"images[{i}]")
    names = ["/".join(url.split("/")[-2:]) for url in urls]
    return _read(card, path, image_root, document, images, names, federated=True)


def read_grounding(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """GoldG-style json (MDETR's): a `caption` per image and character spans `tokens_positive` per box.

    Every annotation gets `phrase`, the words of its spans; every dict gets `caption`. Boxes without spans get an
    empty phrase and are counted. Raises DatasetError for spans outside the caption.
    """
    document = load_json(path)
    images = section(document, "images", path)
    names = column(images, "file_name", "str", path, "images")
    captions = column(images, "caption", "str", path, "images")
    ids = column(images, "id", "id", path, "images")
    of_image = dict(zip(ids.tolist() if isinstance(ids, np.ndarray) else ids, captions))
    phrases = [_phrase(item, of_image, path) for item in section(document, "annotations", path)]
    if empty := phrases.count(""):
        logger.warning("%s: %d of %d boxes have no phrase", path, empty, len(phrases))
    extras = [{"caption": caption} for caption in captions]
    return _read(card, path, image_root, document, images, names, phrases=phrases, extras=extras)


def read_openimages_json(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """OpenImages in COCO form as UniDet and Detic convert it: `isgroupof` per box (a crowd here) and verified
    `pos_category_ids` and `neg_category_ids` per image."""
    document = load_json(path)
    images = section(document, "images", path)
    names = column(images, "file_name", "str", path, "images")
    return _read(card, path, image_root, document, images, names, federated=True)


def _phrase(annotation: dict, captions: dict, path: Path) -> str:
    spans, caption = annotation.get("tokens_positive", []), captions.get(annotation.get("image_id"), "")
    try:
        for start, end in spans:
            if not 0 <= start < end <= len(caption):
                raise ValueError
        return " ".join(caption[start:end].strip() for start, end in spans)
    except (TypeError, ValueError):
        raise DatasetError(
            f"'tokens_positive' is {spans!r:.60}: not spans [start, end] in a caption of {len(caption)} characters",
            file=path,
            where=f"annotation id {annotation.get('id')}, image id {annotation.get('image_id')}",
        ) from None


def _read(
    card: DatasetCard,
    path: Path,
    image_root: Path,
    document: dict,
    images: list[dict],
    names: list[str],
    federated: bool = False,
    phrases: list[str] | None = None,
    extras: list[dict[str, Any]] | None = None,
) -> tuple[AnnotationTable, DatasetCard]:
    """The common part: `phrases` per annotation and `extras` per image, in the order of the file."""
    categories = section(document, "categories", path)
    category_ids = column(categories, "id", "id", path, "categories")
    check_unique(category_ids, "category", path)
    category_names = column(categories, "name", "str", path, "categories")
    listed = category_ids.tolist() if isinstance(category_ids, np.ndarray) else category_ids
    classes, mapping, source_ids = match_classes(card, dict(zip(listed, category_names)), path)
    if card.category_ids is None:
        card = replace(card, classes=classes, category_ids=source_ids)

    ids = column(images, "id", "id", path, "images")
    check_unique(ids, "image", path)
    heights, widths = _sizes(images, path)
    for i, name in enumerate(names):
        safe_relative_path(name, path, f"images[{i}] (id {ids[i]})")
    order = np.argsort(np.asarray(ids), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))

    annotations = section(document, "annotations", path, optional=bool(card.options.get("no_annotations")))
    columns = _annotations(annotations, ids, rank, mapping, path, heights[order], widths[order], phrases)
    table = AnnotationTable(
        name=card.name,
        image_root=str(image_root),
        files=Strings.of([names[i] for i in order]),
        ids=ids[order] if isinstance(ids, np.ndarray) else Strings.of([ids[i] for i in order]),
        heights=heights[order].astype(np.int32),
        widths=widths[order].astype(np.int32),
        verified=_verified([images[i] for i in order], columns, mapping, path) if federated else {},
        extras=None if extras is None else Strings.of([orjson.dumps(extras[i]) for i in order]),
        **columns,
    )
    logger.info("%s: %d images, %d boxes, %d classes", path, len(table), len(table.labels), len(classes))
    return table, card


def _sizes(images: list[dict], path: Path) -> tuple[np.ndarray, np.ndarray]:
    sizes = [column(images, key, "int", path, "images") for key in ("height", "width")]
    for key, values in zip(("height", "width"), sizes):
        bad = np.flatnonzero((values <= 0) | (values > 10**6))
        if bad.size:
            i = int(bad[0])
            raise DatasetError(
                f"{key!r} is {values[i]} in {bad.size} images",
                file=path,
                where=f"images[{i}] (id {images[i].get('id')})",
                remedy="write the image's size in pixels",
            )
    return sizes[0], sizes[1]


def _annotations(
    annotations: list[dict],
    image_ids: Any,
    rank: np.ndarray,
    mapping: dict,
    path: Path,
    heights: np.ndarray,
    widths: np.ndarray,
    phrases: list[str] | None,
) -> dict[str, Any]:
    """Annotation columns, sorted by image."""
    own_ids = column(annotations, "id", "id", path, "annotations", default=0)
    if any("id" in item for item in annotations):
        own_ids = column(annotations, "id", "id", path, "annotations")
        check_unique(own_ids, "annotation", path)
    image = _image_index(column(annotations, "image_id", "id", path, "annotations"), image_ids, own_ids, path)
    image = rank[image]
    labels = contiguous_ids(
        column(annotations, "category_id", "id", path, "annotations"), mapping, path, own_ids, "annotation"
    )
    boxes = column(annotations, "bbox", "box", path, "annotations")
    keep = usable_boxes(boxes, widths[image], heights[image], own_ids, path)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image[rows], kind="stable")]
    flags = _flags(annotations, path)
    counts = np.bincount(image[rows], minlength=len(rank))
    return {
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "boxes": boxes[rows].astype(np.float32),
        "labels": labels[rows],
        "flags": flags[rows],
        "segmentations": _segmentations([annotations[i] for i in rows], path),
        "phrases": None if phrases is None else Strings.of([phrases[i] for i in rows]),
    }


def _image_index(values: Any, image_ids: Any, owners: Any, path: Path) -> np.ndarray:
    """Position in the file's images of every annotation's image."""
    values, image_ids = np.asarray(values), np.asarray(image_ids)
    if not len(values):
        return np.zeros(0, np.int64)
    if not len(image_ids) or values.dtype.kind != image_ids.dtype.kind:
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


def _flags(annotations: list[dict], path: Path) -> np.ndarray:
    crowd = column(annotations, "iscrowd", "int", path, "annotations", default=0)
    group = np.array([int(bool(item.get("isgroupof"))) for item in annotations], np.int64)
    return (((crowd != 0) | (group != 0)) * CROWD + group * GROUP_OF).astype(np.uint8)


def _segmentations(annotations: list[dict], path: Path) -> Strings | None:
    """Polygons of three points or more and run-length masks as json; empty where there is no valid one."""
    if not any(item.get("segmentation") for item in annotations):
        return None
    packed, broken = [], []
    for item in annotations:
        value = _valid_mask(item.get("segmentation"))
        if value is None and item.get("segmentation"):
            broken.append(item.get("id"))
        packed.append(b"" if value is None else orjson.dumps(value))
    if broken:
        logger.warning(
            "%s: %d annotations have no valid mask (annotation id %s); their boxes are kept",
            path,
            len(broken),
            broken[:3],
        )
    return Strings.of(packed)


def _valid_mask(value: Any) -> Any:
    if isinstance(value, dict):
        return value if isinstance(value.get("size"), list) and value.get("counts") else None
    if not isinstance(value, list):
        return None
    polygons = [
        polygon
        for polygon in value
        if isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(type(x) in (int, float) and abs(x) < 1e6 for x in polygon)
    ]
    return polygons or None


def _verified(images: list[dict], columns: dict, mapping: dict, path: Path) -> dict[str, Ragged]:
    """Verified labels per image (federated annotation), contiguous ids."""
    lists: dict[str, Ragged] = {}
    offsets, labels = columns["offsets"], columns["labels"]
    lists["pos_category_ids"] = Ragged.of([np.unique(labels[a:b]).tolist() for a, b in zip(offsets[:-1], offsets[1:])])
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        values: list[list[int]] = []
        for image in images:
            ids = image.get(key, [])
            try:
                values.append([mapping[i] for i in ids])
            except (KeyError, TypeError):
                raise DatasetError(
                    f"{key!r} is {ids!r:.60}: not a list of declared category ids",
                    file=path,
                    where=f"image id {image.get('id')}",
                ) from None
        if key == "pos_category_ids":
            boxed = (labels[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:]))
            values = [sorted({*found, *verified}) for found, verified in zip(boxed, values)]
        lists[key] = Ragged.of(values)
    return lists
