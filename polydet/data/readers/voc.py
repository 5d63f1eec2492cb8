"""Pascal VOC: image set lists and one xml file per image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from polydet.data.card import DatasetCard
from polydet.data.columns import CROWD, AnnotationTable, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers.box_format import BoxForm
from polydet.data.readers.checks import check_unique, usable_boxes
from polydet.data.readers.json_file import safe_relative_path

__all__ = ["Objects", "boxes_table", "parse_voc_xml", "read_voc"]

logger = logging.getLogger(__name__)

Objects = list[tuple[str, tuple[float, float, float, float], int]]  # class name, XYWH pixels, flags

_MAX_XML = 16 * 2**20  # bytes; an annotation is a few thousand


def parse_voc_xml(path: Path) -> tuple[int, int, Objects]:
    """Height, width and objects of one VOC annotation.

    VOC counts pixels from 1 and includes the last one, so the box is [xmin - 1, ymin - 1, xmax - xmin + 1, ...], as in
    Detectron2. Difficult objects are crowds: training leaves them out, evaluation ignores them. Raises DatasetError
    naming the file and the object; entity declarations are refused.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MAX_XML or b"<!ENTITY" in data:
            raise DatasetError("is too large or declares entities: not a VOC annotation", file=path)
        root = ElementTree.fromstring(data)
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}", file=path) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"is not valid xml ({error})", file=path) from error
    height, width = (int(_number(root, f"size/{side}", path, "size")) for side in ("height", "width"))
    if not (0 < height <= 10**6 and 0 < width <= 10**6):
        raise DatasetError(f"size is {width}x{height}", file=path, where="size", remedy="write the image's size")
    objects: Objects = []
    for i, item in enumerate(root.findall("object")):
        where = f"object[{i}]"
        name = (item.findtext("name") or "").strip()
        if not name:
            raise DatasetError("object has no name", file=path, where=where)
        x0, y0, x1, y1 = (_number(item, f"bndbox/{key}", path, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        objects.append((name, (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1), CROWD if difficult else 0))
    return height, width, objects


def _number(node: ElementTree.Element, tag: str, path: Path, where: str) -> float:
    text = node.findtext(tag)
    try:
        value = float(text)  # type: ignore[arg-type]
        if not np.isfinite(value) and where == "size":
            raise ValueError
    except (TypeError, ValueError):
        raise DatasetError(f"{tag} is {text!r}, not a number", file=path, where=where) from None
    return value


def read_voc(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """An image set (`ImageSets/Main/trainval.txt`), its `Annotations/<id>.xml` and images `<image_root>/<id>.jpg`."""
    if card.classes is None:
        raise DatasetError(f"card {card.name!r} (VOC) must declare its classes")
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read as text: {error}", file=path) from error
    ids = [line[0] for line in lines]
    check_unique(ids or [""], "image", path)
    names, sizes, objects = [], [], []
    for number, image in enumerate(ids, 1):
        safe_relative_path(image, path, f"line {number}")
        height, width, found = parse_voc_xml(path.parents[2] / "Annotations" / f"{image}.xml")
        names.append(f"{image}.jpg")
        sizes.append((height, width))
        objects.append(found)
    return boxes_table(card, path, image_root, names, sizes, objects, ids), card


def boxes_table(
    card: DatasetCard,
    path: Path,
    image_root: Path,
    names: list[str],
    sizes: Any,
    objects: list[Objects],
    ids: list[str] | None = None,
    form: BoxForm = "xyxy",
) -> AnnotationTable:
    """A table from one list of objects per image; class names must be the card's.

    Args:
        sizes: (height, width) per image.
        ids: image ids, by default the file names.
        form: the file's box format, for messages.
    """
    label_of = {name: k for k, name in enumerate(card.classes or ())}
    image, labels, boxes, flags, owners = [], [], [], [], []
    for i, found in enumerate(objects):
        for name, box, flag in found:
            name = card.spelling.get(name, name)
            if name not in label_of:
                raise DatasetError(
                    f"class {name!r} is not one of card {card.name!r}", file=path, where=f"image {names[i]}"
                )
            image.append(i)
            labels.append(label_of[name])
            boxes.append(box)
            flags.append(flag)
            owners.append(names[i])
    heights, widths = np.asarray(sizes, np.int64).reshape(-1, 2).T
    index, array = np.asarray(image, np.int64), np.asarray(boxes, np.float64).reshape(-1, 4)
    rows = np.flatnonzero(usable_boxes(array, widths[index], heights[index], owners, path, "image", form))
    counts = np.bincount(index[rows], minlength=len(names))
    logger.info("%s: %d images, %d boxes", path, len(names), len(rows))
    return AnnotationTable(
        name=card.name,
        image_root=str(image_root),
        files=Strings.of(names),
        ids=Strings.of(ids if ids is not None else names),
        heights=heights.astype(np.int32),
        widths=widths.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=array[rows].astype(np.float32),
        labels=np.asarray(labels, np.int32)[rows],
        flags=np.asarray(flags, np.uint8)[rows],
    )
