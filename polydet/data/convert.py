"""Other people's annotation formats to COCO json: YOLO text files and VOC xml files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from polydet.data.errors import DatasetError
from polydet.data.readers.box_format import check_box_format
from polydet.data.readers.checks import clean_class_names
from polydet.data.readers.openimages import image_sizes
from polydet.data.readers.voc import parse_voc_xml

__all__ = ["voc_to_coco", "yolo_class_names", "yolo_to_coco"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def yolo_class_names(path: Path) -> list[str]:
    """Class names from a `data.yaml` (`names:` as list or mapping) or a text file with one name per line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read as text: {error}", file=path) from error
    if path.suffix not in (".yaml", ".yml"):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = yaml.load(text, yaml.BaseLoader)  # names as they are written: on is no truth value, 007 no number
        except yaml.YAMLError as error:
            raise DatasetError(f"is not valid YAML ({error})", file=path) from error
        given = content.get("names") if isinstance(content, dict) else None
        if isinstance(given, dict):
            if set(given) != set(map(str, range(len(given)))):
                raise DatasetError(f"'names' has the keys {list(given)[:10]}, not 0, 1, 2, ...", file=path)
            given = [given[str(i)] for i in range(len(given))]
        names = given if isinstance(given, list) else []
        if odd := [name for name in names if not isinstance(name, str)]:
            raise DatasetError(f"'names' holds {odd[0]!r:.60}, which is no name", file=path)
    if not names:
        raise DatasetError("names no classes", file=path, remedy="a list under 'names', or one name per line")
    return clean_class_names(names, path)


def yolo_to_coco(images: Path, labels: Path, names: Sequence[str]) -> dict[str, Any]:
    """YOLO text files as a COCO document.

    `labels/<path>.txt` belongs to `images/<path>.jpg`; a line is `class cx cy w h`, relative to the image, or `class`
    and the points of a polygon. An image without a file, or with an empty one, has no objects; label files without an
    image are counted and logged. Raises DatasetError with file and line for anything else, and if no label file
    belongs to an image.
    """
    files = _image_files(images)
    _check_label_files(images, labels, files)
    heights, widths = image_sizes(images, files)
    document = _document(names)
    boxes, sides = [], []
    for number, (file, height, width) in enumerate(zip(files, heights.tolist(), widths.tolist()), 1):
        _need_size(images / file, height)
        document["images"].append({"id": number, "file_name": file, "height": height, "width": width})
        path = (labels / file).with_suffix(".txt")
        for line, words in enumerate(_label_lines(path), 1):
            if words:
                box, polygon, k = _yolo_object(words, len(names), path, line)
                scale = np.array([width, height])
                corners = (box.reshape(2, 2) * scale).reshape(-1)
                if polygon is None:
                    boxes.append([*corners[:2], *(corners[2:] - corners[:2])])
                    sides.append((width, height))
                extra = {} if polygon is None else {"segmentation": [(polygon * scale).reshape(-1).tolist()]}
                _add(document, number, k + 1, corners, 0, extra)
    widths, heights = np.array(sides, np.float64).reshape(-1, 2).T
    check_box_format(np.array(boxes, np.float64).reshape(-1, 4), widths, heights, labels, "cxcywh")
    return document


def _check_label_files(images: Path, labels: Path, files: Sequence[str]) -> None:
    """Wrong folders would make every image one without objects."""
    found = {str(path.relative_to(labels)) for path in labels.rglob("*.txt")}
    alone = sorted(found - {str(Path(file).with_suffix(".txt")) for file in files} - {"classes.txt"})
    if len(alone) == len(found - {"classes.txt"}):
        raise DatasetError(
            f"holds no label file of an image in {images} (found {', '.join(alone[:3]) or 'none'})",
            file=labels,
            remedy=f"the labels of {files[0]} are looked for at {Path(files[0]).with_suffix('.txt')}",
        )
    if alone:
        logger.warning("%s: %d label files have no image (such as %s)", labels, len(alone), alone[0])


def _label_lines(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    try:
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read as text: {error}", file=path) from error


def _yolo_object(words: list[str], classes: int, path: Path, line: int) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Corners x0 y0 x1 y1 (relative), polygon [n, 2] or None, class."""
    where = f"line {line}"
    try:
        values = np.array([float(word) for word in words])
        k = int(words[0])
    except ValueError:
        raise DatasetError(f"{' '.join(words)!r:.60} is not a class and numbers", file=path, where=where) from None
    if not 0 <= k < classes:
        raise DatasetError(f"class {k} is not below {classes}", file=path, where=where, remedy="name every class")
    if len(values) < 5 or len(values) % 2 == 0:
        raise DatasetError(f"{len(values)} fields: not a box (5) or a polygon (7, 9, ...)", file=path, where=where)
    if not np.isfinite(values).all() or (values[1:] < -0.1).any() or (values[1:] > 1.1).any():
        raise DatasetError(
            "coordinates are not between 0 and 1", file=path, where=where, remedy="YOLO coordinates are relative"
        )
    if len(values) == 5:
        centre, half = values[1:3], values[3:5] / 2
        return np.concatenate([centre - half, centre + half]), None, k
    polygon = values[1:].reshape(-1, 2)
    return np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]), polygon, k


def voc_to_coco(images: Path, annotations: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """A folder of VOC xml files as a COCO document; classes in alphabetical order unless `names` are given.

    The image has the xml's name. Difficult objects become crowds. Raises DatasetError with file and object.
    """
    of_stem: dict[str, str] = {}
    for file in _image_files(images):
        stem = str(Path(file).with_suffix(""))
        if stem in of_stem:
            raise DatasetError(f"images {of_stem[stem]!r} and {file!r} have the same name", file=images)
        of_stem[stem] = file
    paths = sorted(annotations.rglob("*.xml"))
    if not paths:
        raise DatasetError("holds no xml files", file=annotations)
    parsed = [(path, *parse_voc_xml(path)) for path in paths]
    found = sorted({name for *_, objects in parsed for name, _, _ in objects})
    classes = list(names) if names is not None else clean_class_names(found, annotations)
    if unknown := sorted(set(found) - set(classes)):
        raise DatasetError(f"classes {unknown[:5]} occur but are not named", file=annotations, remedy="name them all")
    document = _document(classes)
    for number, (path, height, width, objects) in enumerate(parsed, 1):
        stem = str(path.relative_to(annotations).with_suffix(""))
        if stem not in of_stem:
            raise DatasetError(f"has no image {stem}.* in {images}", file=path)
        document["images"].append({"id": number, "file_name": of_stem[stem], "height": height, "width": width})
        for name, (x, y, w, h), flags in objects:
            _add(document, number, classes.index(name) + 1, np.array([x, y, x + w, y + h]), int(flags > 0), {})
    return document


def _document(names: Sequence[str]) -> dict[str, Any]:
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    return {"info": {}, "images": [], "annotations": [], "categories": categories}


def _add(document: dict, image: int, category: int, corners: np.ndarray, crowd: int, extra: dict) -> None:
    x0, y0, x1, y1 = corners.tolist()
    box = [x0, y0, x1 - x0, y1 - y0]
    item = {"id": len(document["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": box}
    document["annotations"].append({**item, "area": box[2] * box[3], "iscrowd": crowd, **extra})


def _image_files(folder: Path) -> list[str]:
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise DatasetError("holds no images", file=folder, remedy=f"suffixes {' '.join(_SUFFIXES)}")
    return files


def _need_size(path: Path, height: int) -> None:
    if height == 0:
        raise DatasetError("image cannot be read", file=path, remedy="repair or remove it")
