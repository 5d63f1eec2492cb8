"""Writes ShapeWorld: JPEG files and annotation files in the real formats, once, whole or not at all."""

from __future__ import annotations

import csv
import io
import logging
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson

from polydet.data.card import DatasetCard, datasets_root
from polydet.data.errors import DatasetError
from polydet.data.shapeworld.documents import caption_rows, coco_document, file_name, lvis_documents, phrase_document
from polydet.data.shapeworld.names import COARSE, NOVEL, WILD, colour_weights
from polydet.data.shapeworld.openimages import write_openimages
from polydet.data.shapeworld.world import COLOURS, NOVEL_KINDS, TRAINED_KINDS, Scene, render, sample_scene
from polydet.files import locked, remove_leftovers, whole_folder

__all__ = ["PARTS", "VERSION", "ensure", "ensure_part", "scenes_of", "write_images", "write_part"]

logger = logging.getLogger(__name__)

VERSION = "v1"  # raise when a change alters any byte that is written
SEED = 20260101
_TRAIN_TAIL = (0.66, 0.24, 0.085, 0.015)  # shares of a kind's fine names
_VAL_TAIL = (0.4, 0.27, 0.19, 0.14)  # rare names are frequent enough in val to be scored

Counts = dict[str, int]


def ensure(card: DatasetCard) -> None:
    """Write the part of ShapeWorld that a card needs, if it is not there (`DatasetCard.generator`)."""
    ensure_part(str(card.options["part"]))


def ensure_part(part: str, root: Path | None = None) -> Path:
    """The folder of a part, written first if need be. Safe with several processes: one writes, the others wait.

    Raises DatasetError if it cannot be written (no rights, full disk); then nothing is left behind.
    """
    base = (root or datasets_root()) / "shapeworld" / VERSION
    target = base / part
    if target.is_dir():
        return target
    try:
        with locked(base / f".{part}.lock"):
            if not target.is_dir():
                logger.info("writing ShapeWorld's %s to %s", part, target)
                remove_leftovers(base, part)
                with whole_folder(target) as folder:
                    write_part(part, folder)
    except OSError as error:
        raise DatasetError(
            f"ShapeWorld cannot be written: {error.strerror or error}",
            file=target,
            remedy="free some space or point DETECTRON2_DATASETS to a folder that can be written",
        ) from error
    return target


def write_part(part: str, folder: Path, counts: Counts | None = None, seed: int = SEED) -> None:
    """Write one part (a key of `PARTS`) into an existing folder. Same counts and seed, same bytes."""
    if part not in PARTS:
        raise DatasetError(f"ShapeWorld has no part {part!r}", remedy=f"one of {sorted(PARTS)}")
    writer, default = PARTS[part]
    writer(folder, {**default, **(counts or {})}, seed)


def scenes_of(
    name: str, count: int, weights: dict[tuple[str, str], float], seed: int = SEED, **options: Any
) -> list[Scene]:
    """`count` random scenes; each depends only on (name, position, seed)."""
    key = zlib.crc32(name.encode())
    return [sample_scene(np.random.default_rng((seed, key, i)), weights, **options) for i in range(count)]


def write_images(folder: Path, scenes: Sequence[Scene], names: Sequence[str] | None = None) -> None:
    """Draw scenes into JPEG files (default names: 000000000001.jpg, ...)."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        name = names[i] if names is not None else file_name(i + 1)
        (folder / name).write_bytes(_jpeg(scene))


def _jpeg(scene: Scene) -> bytes:
    done, data = cv2.imencode(".jpg", render(scene)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not done:
        raise DatasetError("a picture could not be encoded as JPEG")
    return data.tobytes()


def write_json(path: Path, document: Any) -> None:
    """Write json, making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(document))


def _coco_like(part: str, names: dict[str, str], background: str, weights: dict) -> Callable[[Path, Counts, int], None]:
    def write(folder: Path, counts: Counts, seed: int) -> None:
        for split, count in counts.items():
            scenes = scenes_of(f"{part}/{split}", count, weights, seed, background=background)
            write_images(folder / split, scenes)
            write_json(folder / f"instances_{split}.json", coco_document(scenes, names, list(names.values())))

    return write


def _write_lvis(folder: Path, counts: Counts, seed: int) -> None:
    splits, first = {}, 1
    for split, count in counts.items():
        weights = colour_weights(_TRAIN_TAIL if split == "train" else _VAL_TAIL)
        splits[split] = scenes_of(f"lvis/{split}", count, weights, seed)
        write_images(folder / split, splits[split], [file_name(i) for i in range(first, first + count)])
        first += count
    for split, document in lvis_documents(splits, np.random.default_rng((seed, 1))).items():
        write_json(folder / f"lvis_{split}.json", document)


def _write_phrases(folder: Path, counts: Counts, seed: int) -> None:
    for split, count in counts.items():
        scenes = scenes_of(f"phrases/{split}", count, colour_weights(), seed)
        write_images(folder / split, scenes)
        write_json(folder / f"phrases_{split}.json", phrase_document(scenes, np.random.default_rng((seed, 2))))


def _write_captions(folder: Path, counts: Counts, seed: int) -> None:
    """The same pairs twice: images beside a csv, and webdataset shards of 500."""
    weights = {**colour_weights(), **_novel_weights(2.0)}
    for split, count in counts.items():
        scenes = scenes_of(f"captions/{split}", count, weights, seed)
        write_images(folder / split, scenes)
        rows = caption_rows(scenes, np.random.default_rng((seed, 3)))
        with (folder / f"captions_{split}.csv").open("w", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows([("file_name", "caption"), *rows])
        write_shards(folder / "shards", split, [(folder / split / name, text) for name, text in rows])


def write_shards(folder: Path, prefix: str, pairs: Sequence[tuple[Path, str]], size: int = 500) -> None:
    """Image-text pairs as webdataset shards `<prefix>-000000.tar`, members `<key>.jpg` and `<key>.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, len(pairs), size)):
        with tarfile.open(folder / f"{prefix}-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for image, text in pairs[start : start + size]:
                for suffix, data in ((".jpg", image.read_bytes()), (".txt", text.encode())):
                    member = tarfile.TarInfo(image.stem + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _write_oid(folder: Path, counts: Counts, seed: int) -> None:
    for split, count in counts.items():
        scenes = scenes_of(f"oid/{split}", count, colour_weights(), seed, group_rate=0.25)
        names = write_openimages(folder, split, scenes, np.random.default_rng((seed, 4)))
        write_images(folder / split, scenes, names)


def _novel_weights(weight: float) -> dict[tuple[str, str], float]:
    return {(kind, colour): weight for kind in NOVEL_KINDS for colour in COLOURS}


_NOVEL_WEIGHTS = {**dict.fromkeys(colour_weights(), 0.3), **_novel_weights(1.0)}
_WILD_WEIGHTS = {(kind, colour): 1.0 for kind in TRAINED_KINDS for colour in COLOURS}

PARTS: dict[str, tuple[Callable[[Path, Counts, int], None], Counts]] = {
    "coco": (_coco_like("coco", COARSE, "plain", colour_weights()), {"train": 1500, "val": 200}),
    "lvis": (_write_lvis, {"train": 1500, "val": 200}),
    "wild": (_coco_like("wild", WILD, "meadow", _WILD_WEIGHTS), {"val": 200}),
    "novel": (_coco_like("novel", NOVEL, "plain", _NOVEL_WEIGHTS), {"val": 200}),
    "oid": (_write_oid, {"train": 600, "validation": 150}),
    "phrases": (_write_phrases, {"train": 800}),
    "captions": (_write_captions, {"train": 2000}),
}
