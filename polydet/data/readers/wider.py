"""WIDER FACE and WIDER Pedestrian text files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from polydet.data.card import DatasetCard
from polydet.data.columns import CROWD, AnnotationTable
from polydet.data.errors import DatasetError
from polydet.data.readers.checks import check_unique
from polydet.data.readers.json_file import safe_relative_path
from polydet.data.readers.openimages import absent_images, image_sizes
from polydet.data.readers.voc import Objects, boxes_table

__all__ = ["read_wider_face", "read_wider_pedestrian"]

logger = logging.getLogger(__name__)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read as text: {error}", file=path) from error


def _floats(words: list[str], path: Path, line: int) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        raise DatasetError(f"{' '.join(words)!r:.60} are not numbers", file=path, where=f"line {line}") from None


def read_wider_face(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """`wider_face_*_bbx_gt.txt`: a file name, a count, then per face `x y w h blur expression illumination invalid
    occlusion pose`; a count of 0 is followed by one line of zeros. Invalid faces and faces without area are crowds
    (left out in training, ignored in evaluation)."""
    names: list[str] = []
    objects: list[Objects] = []
    lines = _lines(path)
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        names.append(safe_relative_path(lines[at].strip(), path, f"line {at + 1}"))
        count_text = lines[at + 1].strip() if at + 1 < len(lines) else ""
        if not count_text.isdigit() or at + 2 + int(count_text) > len(lines):
            raise DatasetError(
                f"{names[-1]!r} is followed by {count_text!r:.40}, not by a count and as many faces",
                file=path,
                where=f"line {at + 2}",
                remedy="fetch wider_face_split.zip again",
            )
        count = int(count_text)
        objects.append([_face(lines[i].split(), card, path, i + 1) for i in range(at + 2, at + 2 + count)])
        at += 2 + max(count, 1)
    return _with_sizes(card, path, image_root, names, objects), card


def _face(words: list[str], card: DatasetCard, path: Path, line: int) -> tuple[str, tuple, int]:
    values = _floats(words, path, line)
    if len(values) < 8:
        raise DatasetError(f"face has {len(values)} numbers, not 10", file=path, where=f"line {line}")
    x, y, w, h = values[:4]
    invalid = bool(values[7]) or w <= 0 or h <= 0
    return (
        (card.classes or ("face",))[0],
        (x, y, max(w, 1.0), max(h, 1.0)) if invalid else (x, y, w, h),
        CROWD * invalid,
    )


def read_wider_pedestrian(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """Lines `name x y w h x y w h ...`; `card.files["ignore"]`, where given, has the same form and holds crowds.

    Images are found by name anywhere under `image_root`. With `card.options["fields"] = 5` every box is preceded by
    its class number (the challenge of 2018).
    """
    fields = int(card.options.get("fields", 4))
    objects = dict(_pedestrians(card, path, fields, 0))
    if "ignore" in card.files:
        for name, ignored in _pedestrians(card, card.file("ignore"), fields, CROWD):
            objects.setdefault(name, []).extend(ignored)
    places = {p.name: str(p.relative_to(image_root)) for p in image_root.rglob("*") if p.suffix.lower() in _SUFFIXES}
    names = [places.get(name, name) for name in objects]
    return _with_sizes(card, path, image_root, names, list(objects.values())), card


_SUFFIXES = (".jpg", ".jpeg", ".png")


def _pedestrians(card: DatasetCard, path: Path, fields: int, flag: int) -> Iterator[tuple[str, Objects]]:
    seen: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        seen.append(safe_relative_path(words[0], path, f"line {number}"))
        values = _floats(words[1:], path, number)
        if len(values) % fields:
            raise DatasetError(
                f"{len(values)} numbers are not boxes of {fields}", file=path, where=f"line {number}",
                remedy="set the card's option fields to 4 or 5",
            )  # fmt: skip
        boxes = [values[i + fields - 4 : i + fields] for i in range(0, len(values), fields)]
        yield words[0], [((card.classes or ("pedestrian",))[0], (b[0], b[1], b[2], b[3]), flag) for b in boxes]
    check_unique(seen or [""], "image", path)


def _with_sizes(
    card: DatasetCard, path: Path, image_root: Path, names: list[str], objects: list[Objects]
) -> AnnotationTable:
    """Sizes come from the images; missing images are dropped and counted."""
    check_unique(names or [""], "image", path)
    heights, widths = image_sizes(image_root, names)
    keep = np.flatnonzero(heights)
    absent: tuple[str, ...] = ()
    if len(keep) < len(names):
        lost = names[int(np.flatnonzero(heights == 0)[0])]
        message = f"{len(names) - len(keep)} of {len(names)} images are missing or unreadable (such as {lost})"
        if not len(keep):
            raise DatasetError(message, file=image_root, remedy="put the images there; see docs/datasets.md")
        logger.warning("%s: %s; they are dropped", image_root, message)
        absent = absent_images(image_root, names, heights)
    sizes = [(int(heights[i]), int(widths[i])) for i in keep]
    table = boxes_table(
        card, path, image_root, [names[i] for i in keep], sizes, [objects[i] for i in keep], form="xywh"
    )
    return replace(table, absent=absent)
