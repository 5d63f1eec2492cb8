"""COCO, LVIS, OpenImages and grounding json files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from polydet.data.card import DatasetCard
from polydet.data.columns import AnnotationTable, Ragged, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers.annotation_columns import Phrase, annotation_columns, raw_columns
from polydet.data.readers.checks import check_unique, match_classes
from polydet.data.readers.json_file import column, safe_relative_path
from polydet.data.readers.json_stream import JsonSections

__all__ = ["read_coco", "read_grounding", "read_lvis", "read_openimages_json"]

logger = logging.getLogger(__name__)


def read_coco(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """A COCO json file (instances, any category ids) as columns; images in the order of their ids.

    Returns the table and the card with classes and category ids filled in. Raises DatasetError; see
    `docs/datasets.md` for what is an error and what is a counted drop.
    """
    sections = JsonSections(path)
    images = sections.whole("images")
    names = column(images, "file_name", "str", path, "images")
    return _read(card, path, image_root, sections, images, names)


def read_lvis(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """An LVIS v1 json file as columns, with `pos_`, `neg_` and `not_exhaustive_category_ids` per image.

    The image is at the last two parts of `coco_url` (`train2017/000000000009.jpg`) under `image_root`, in a file of
    your own without that key at `file_name`. Positive are the classes annotated in the image.
    """
    sections = JsonSections(path)
    images = sections.whole("images")
    if images and not any("coco_url" in image for image in images):
        names = column(images, "file_name", "str", path, "images")
        return _read(card, path, image_root, sections, images, names, federated=True)
    urls = column(images, "coco_url", "str", path, "images")
    for i, url in enumerate(urls):
        if url.count("/") < 1:
            raise DatasetError(f"'coco_url' {url!r} has no folder", file=path, where=f"images[{i}]")
    names = ["/".join(url.split("/")[-2:]) for url in urls]
    return _read(card, path, image_root, sections, images, names, federated=True)


def read_openimages_json(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """OpenImages in COCO form as UniDet and Detic convert it: `isgroupof` per box (a crowd here) and verified
    `pos_category_ids` and `neg_category_ids` per image."""
    sections = JsonSections(path)
    images = sections.whole("images")
    names = column(images, "file_name", "str", path, "images")
    return _read(card, path, image_root, sections, images, names, federated=True)


def read_grounding(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """GoldG-style json (MDETR's): a `caption` per image and character spans `tokens_positive` per box.

    Every annotation gets `phrase`, the words of its spans; every dict gets `caption`. Boxes without spans get an
    empty phrase and are counted. Raises DatasetError for spans outside the caption.
    """
    sections = JsonSections(path)
    images = sections.whole("images")
    names = column(images, "file_name", "str", path, "images")
    captions = column(images, "caption", "str", path, "images")
    ids = column(images, "id", "id", path, "images")
    of_image = dict(zip(ids.tolist() if isinstance(ids, np.ndarray) else ids, captions))
    extras = [{"caption": caption} for caption in captions]

    def phrase_of(annotation: dict) -> str:
        return _phrase(annotation, of_image, path)

    return _read(card, path, image_root, sections, images, names, phrase_of=phrase_of, extras=extras)


def _phrase(annotation: dict, captions: dict, path: Path) -> str:
    spans, image = annotation.get("tokens_positive", []), annotation.get("image_id")
    caption = captions.get(image, "") if isinstance(image, (int, str)) else ""  # a wrong id is reported later
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
    sections: JsonSections,
    images: list[dict],
    names: list[str],
    federated: bool = False,
    phrase_of: Phrase | None = None,
    extras: list[dict[str, Any]] | None = None,
) -> tuple[AnnotationTable, DatasetCard]:
    """The common part: `phrase_of` gives an annotation's phrase; `extras` per image, in the order of the file."""
    classes, mapping, source_ids = _categories(card, sections, path)
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

    raw = raw_columns(sections, path, phrase_of, optional=bool(card.options.get("no_annotations")))
    sizes = heights[order], widths[order]
    columns = annotation_columns(raw, ids, rank, mapping, path, sizes, phrase_of is not None)
    table = AnnotationTable(
        name=card.name,
        image_root=str(image_root),
        files=Strings.of([names[i] for i in order]),
        ids=ids[order] if isinstance(ids, np.ndarray) else Strings.of([ids[i] for i in order]),
        heights=sizes[0].astype(np.int32),
        widths=sizes[1].astype(np.int32),
        verified=_verified([images[i] for i in order], columns, mapping, path) if federated else {},
        extras=None if extras is None else Strings.of([orjson.dumps(extras[i]) for i in order]),
        **columns,
    )
    logger.info("%s: %d images, %d boxes, %d classes", path, len(table), len(table.labels), len(classes))
    return table, card


def _categories(
    card: DatasetCard, sections: JsonSections, path: Path
) -> tuple[tuple[str, ...], dict[Any, int], tuple[Any, ...]]:
    categories = sections.whole("categories")
    ids = column(categories, "id", "id", path, "categories")
    check_unique(ids, "category", path)
    names = column(categories, "name", "str", path, "categories")
    listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return match_classes(card, dict(zip(listed, names)), path)


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


def _verified(images: list[dict], columns: dict, mapping: dict, path: Path) -> dict[str, Ragged]:
    """Verified labels per image (federated annotation), contiguous ids; annotated classes are positive."""
    lists: dict[str, Ragged] = {}
    offsets, labels = columns["offsets"], columns["labels"]
    for key in ("pos_category_ids", "neg_category_ids", "not_exhaustive_category_ids"):
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
