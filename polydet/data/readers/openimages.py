"""OpenImages csv files (v4 to v7 and the challenges) and the json that Detic and UniDet make of them."""

from __future__ import annotations

import csv
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from polydet.data.card import DatasetCard
from polydet.data.columns import CROWD, GROUP_OF, AnnotationTable, Ragged, Strings
from polydet.data.errors import DatasetError
from polydet.data.images import exif_turn
from polydet.data.readers.checks import usable_boxes
from polydet.data.readers.json_file import safe_relative_path
from polydet.data.store import current_work

__all__ = ["absent_images", "image_sizes", "read_openimages"]

logger = logging.getLogger(__name__)

_BOX = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
_LABEL = ("ImageID", "LabelName", "Confidence")
_THREADS = 16  # reading headers waits for the disk
_SIZES_AT_ONCE = 20_000


def read_openimages(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """A box csv with its image-level labels (`card.files["labels"]`) as a federated table.

    Ids of classes are machine ids (`/m/...`), ids of images the sixteen hexadecimal digits. Positive labels are those
    with a box or verified with confidence 1, negative those verified with 0. Group-of boxes are crowds. The csv has
    relative coordinates, so every image's header is read for its size; images that are missing are dropped and
    counted. Images lie in `image_root` or, as the challenge's script puts them, in folders by their first digit.

    Raises DatasetError for missing columns, bad numbers, unknown class ids (each with the line), or if no image is
    there.
    """
    if card.classes is None or card.category_ids is None:
        raise DatasetError(f"card {card.name!r} (OpenImages) must declare classes and category_ids")
    mapping = {mid: k for k, mid in enumerate(card.category_ids)}
    number_of: dict[str, int] = {}
    box_image, labels, boxes, group = array("q"), array("q"), array("d"), array("q")  # lists: several GiB more
    for line, (image, mid, *values) in _rows(path, _BOX):
        box_image.append(_number_of(number_of, image, path, line))
        labels.append(_class(mapping, mid, path, line))
        boxes.extend(_numbers(values[:4], path, line))
        group.append(values[4] == "1")
    verified: list[tuple[int, int, bool]] = []
    labels_path = card.file("labels")
    for line, (image, mid, confidence) in _rows(labels_path, _LABEL):
        if mid in mapping:  # the image-level files may hold classes that have no boxes
            value = _numbers([confidence], labels_path, line)[0]
            verified.append((_number_of(number_of, image, labels_path, line), mapping[mid], value > 0))

    names = _file_names(list(number_of), image_root)
    absent: tuple[str, ...] = ()
    heights, widths = image_sizes(image_root, names)
    present = np.flatnonzero(heights)
    if len(present) < len(names):
        example = names[int(np.flatnonzero(heights == 0)[0])]
        message = f"{len(names) - len(present)} of {len(names)} images are missing or unreadable (such as {example})"
        if not len(present):
            raise DatasetError(message, file=image_root, remedy="put the images there; see docs/datasets.md")
        logger.warning("%s: %s; they are dropped", image_root, message)
        absent = absent_images(image_root, names, heights)
    table = _table(card, path, image_root, names, (heights, widths), (box_image, labels, boxes, group), verified)
    logger.info("%s: %d images, %d boxes", path, len(present), len(table.labels))
    return replace(table.select(present) if len(present) < len(names) else table, absent=absent), card


def _table(
    card: DatasetCard,
    path: Path,
    image_root: Path,
    names: Sequence[str],
    sizes: tuple[np.ndarray, np.ndarray],
    rows: tuple[array, array, array, array],
    verified: Sequence[tuple[int, int, bool]],
) -> AnnotationTable:
    heights, widths = sizes
    image, labels, group = (np.asarray(rows[i], np.int64) for i in (0, 1, 3))
    relative = np.asarray(rows[2], np.float64).reshape(-1, 4)  # XMin, XMax, YMin, YMax
    scale = np.stack([widths[image], widths[image], heights[image], heights[image]], axis=1)
    x0, x1, y0, y1 = (relative * np.where(scale > 0, scale, 1)).T
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    known = np.where(widths > 0, widths, 1), np.where(heights > 0, heights, 1)
    keep = usable_boxes(boxes, known[0][image], known[1][image], range(2, len(boxes) + 2), path, "line", "xyxy")
    order = np.flatnonzero(keep)[np.argsort(image[keep], kind="stable")]
    counts = np.bincount(image[order], minlength=len(names))
    return AnnotationTable(
        name=card.name,
        image_root=str(image_root),
        files=Strings.of(names),
        ids=Strings.of([Path(name).stem for name in names]),
        heights=heights.astype(np.int32),
        widths=widths.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[order].astype(np.float32),
        labels=labels[order].astype(np.int32),
        flags=(group[order] * (CROWD | GROUP_OF)).astype(np.uint8),
        verified=_verified(len(names), zip(image.tolist(), labels.tolist()), verified),
    )


def _verified(
    images: int, boxed: Iterator[tuple[int, int]], verified: Sequence[tuple[int, int, bool]]
) -> dict[str, Ragged]:
    positive: list[set[int]] = [set() for _ in range(images)]
    negative: list[set[int]] = [set() for _ in range(images)]
    for image, label in boxed:
        positive[image].add(label)
    for image, label, there in verified:
        (positive if there else negative)[image].add(label)
    return {
        "pos_category_ids": Ragged.of([sorted(labels) for labels in positive]),
        "neg_category_ids": Ragged.of([sorted(n - p) for n, p in zip(negative, positive)]),
        "not_exhaustive_category_ids": Ragged.of([[] for _ in range(images)]),
    }


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, wanted fields) of a csv with a header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            missing = [name for name in wanted if name not in header]
            if missing:
                raise DatasetError(
                    f"has no column {missing}", file=path, where=f"line 1: {','.join(header)[:80]}",
                    remedy="fetch OpenImages' own csv again",
                )  # fmt: skip
            columns = [header.index(name) for name in wanted]
            width = max(columns) + 1
            for row in reader:
                if len(row) < width:
                    raise DatasetError("row has too few fields", file=path, where=f"line {reader.line_num}")
                yield reader.line_num, [row[i] for i in columns]
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}", file=path) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"is not a UTF-8 csv ({error})", file=path, remedy="fetch it again") from error


def _class(mapping: dict[Any, int], mid: str, path: Path, line: int) -> int:
    if mid not in mapping:
        raise DatasetError(
            f"class id {mid!r} is not one of the card's {len(mapping)}",
            file=path,
            where=f"line {line}",
            remedy="use the card of this OpenImages version",
        )
    return mapping[mid]


def _numbers(texts: Sequence[str], path: Path, line: int) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise DatasetError(f"{texts} are not all numbers", file=path, where=f"line {line}") from None


def _number_of(known: dict[str, int], image: str, path: Path, line: int) -> int:
    """Number of an image by its id, the next one if it is new; an id becomes a file name."""
    if image not in known:
        safe_relative_path(image, path, f"line {line}")
        if "/" in image:
            raise DatasetError(f"ImageID {image!r} has a slash", file=path, where=f"line {line}")
        known[image] = len(known)
    return known[image]


def _file_names(ids: Sequence[str], image_root: Path) -> list[str]:
    split = any((image_root / image[0] / f"{image}.jpg").exists() for image in ids[:20])
    return [f"{image[0]}/{image}.jpg" if split else f"{image}.jpg" for image in ids]


def image_sizes(root: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths from the images' headers, int64 [n]; 0 where a file is missing or no image."""
    work, parts = current_work(), []
    for start in tqdm(range(0, len(names), _SIZES_AT_ONCE), "image sizes", disable=None):
        key, some = f"sizes-{start}", names[start : start + _SIZES_AT_ONCE]
        known = work.has(key)
        part = work.part(key, partial(_some_sizes, root, some))["sizes"]
        if known and (lost := np.flatnonzero(part[:, 0] == 0)).size:  # they may have come since
            part[lost] = _some_sizes(root, [some[i] for i in lost.tolist()])["sizes"]
        parts.append(part)
    sizes = np.concatenate(parts or [np.zeros((0, 2), np.int64)])
    return sizes[:, 0], sizes[:, 1]


def absent_images(root: Path, names: Sequence[str], heights: np.ndarray) -> tuple[str, ...]:
    """Paths of images that are not on disk (those of height 0 that do not exist), at most 100 from all over."""
    lost = np.flatnonzero(heights == 0)
    some = lost[:: max(1, len(lost) // 100)][:100].tolist()
    return tuple(os.path.join(root, names[i]) for i in some if not (root / names[i]).exists())


def _some_sizes(root: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(partial(_size, root), names))
    return {"sizes": np.array(sizes, np.int64).reshape(-1, 2)}


def _size(root: Path, name: str) -> tuple[int, int]:
    try:
        with Image.open(root / name) as image:
            turned = exif_turn(image) in (5, 6, 7, 8)  # sides swapped
            return image.size if turned else (image.size[1], image.size[0])
    except Exception:  # Pillow raises almost anything on a broken file
        return 0, 0
