"""Image-text pairs: a csv beside images, webdataset shards, and class folders."""

from __future__ import annotations

import csv
import json
import logging
import os
import pkgutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from polydet.data.card import DatasetCard
from polydet.data.columns import AnnotationTable, Strings
from polydet.data.errors import DatasetError
from polydet.data.readers.checks import check_unique
from polydet.data.readers.json_file import safe_relative_path

__all__ = ["read_caption_csv", "read_class_folders", "read_shard"]

logger = logging.getLogger(__name__)

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_BAD_SHARDS_SHOWN = 3


def pairs_table(
    card: DatasetCard, root: Path, files: Sequence[str], ids: Sequence[str], extras: Sequence[dict[str, Any]]
) -> AnnotationTable:
    """A table without boxes. Heights and widths are 0: unknown until the image is read."""
    n = len(files)
    return AnnotationTable(
        name=card.name,
        image_root=str(root),
        files=Strings.of(files),
        ids=Strings.of(ids),
        heights=np.zeros(n, np.int32),
        widths=np.zeros(n, np.int32),
        offsets=np.zeros(n + 1, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        flags=np.zeros(0, np.uint8),
        extras=Strings.of([orjson.dumps(extra) for extra in extras]),
    )


def read_caption_csv(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """A csv with the header `file_name,caption` (other columns are ignored), images under `image_root`.

    Rows with an empty caption are dropped and counted.
    """
    files, captions, empty = [], [], 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = {"file_name", "caption"} - set(reader.fieldnames or ())
            if missing:
                raise DatasetError(
                    f"has no column {sorted(missing)}", file=path, where="line 1", remedy="header: file_name,caption"
                )
            for row in reader:
                name, caption = row["file_name"], row["caption"]
                if name is None or caption is None:
                    raise DatasetError("row has too few fields", file=path, where=f"line {reader.line_num}")
                if not caption.strip():
                    empty += 1
                    continue
                files.append(safe_relative_path(name, path, f"line {reader.line_num}"))
                captions.append(caption)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"is not a UTF-8 csv ({error})", file=path, remedy="write it with a csv library") from error
    if empty:
        logger.warning("%s: %d rows have an empty caption; they are dropped", path, empty)
    check_unique(files or [""], "file name", path)
    return pairs_table(card, image_root, files, files, [{"caption": text} for text in captions]), card


def read_shard(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """One webdataset shard (an uncompressed tar): `<key>.jpg` with `<key>.txt` or a `caption` in `<key>.json`.

    Only headers and captions are read; an image is later read from its place in the tar (`file_offset`, `file_size`).
    A shard that breaks off keeps what is before the break; samples without image or caption are dropped. Both are
    counted and logged with the shard's name.
    """
    samples: dict[str, dict[str, Any]] = {}
    try:
        for key, suffix, member, data in _members(path):
            sample = samples.setdefault(key, {})
            if suffix in _IMAGES:
                sample["file_offset"], sample["file_size"] = member.offset_data, member.size
            else:
                sample["caption"] = data
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:  # of a header's numbers, too
        logger.warning("%s: shard breaks off (%s) after %d samples; these are kept", path, error, len(samples))
    whole = {k: s for k, s in samples.items() if s.get("caption") and "file_offset" in s}
    if len(whole) < len(samples):
        bad = [key for key in samples if key not in whole][:_BAD_SHARDS_SHOWN]
        logger.warning(
            "%s: %d of %d samples lack an image or a caption (key %s); they are dropped",
            path,
            len(samples) - len(whole),
            len(samples),
            ", ".join(bad),
        )
    ids = [f"{path.stem}/{key}" for key in whole]
    return pairs_table(card, path.parent, [path.name] * len(whole), ids, list(whole.values())), card


def _members(path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo, str]]:
    """(key, suffix, member, caption text) of every image and caption of a tar."""
    size = path.stat().st_size
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, name = os.path.split(member.name)
            stem, dot, suffix = name.partition(".")
            suffix = (dot + suffix).lower()
            if not member.isfile() or suffix not in (*_IMAGES, ".txt", ".json"):
                continue
            if member.offset_data + member.size > size:
                raise EOFError(f"member {member.name} is cut")
            text = "" if suffix in _IMAGES else _caption(tar, member, suffix)
            if suffix in _IMAGES or text:
                yield os.path.join(folder, stem), suffix, member, text
    with path.open("rb") as handle:  # tarfile takes a file that ends inside a header for a whole one
        handle.seek(max(size - 512, 0))
        if any(handle.read()):
            raise EOFError("no end-of-archive block")


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str:
    handle = tar.extractfile(member)
    data = handle.read() if handle is not None else b""
    text = data.decode("utf-8", errors="replace")
    if suffix == ".txt":
        return text.strip()
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return ""
    caption = value.get("caption") if isinstance(value, dict) else None
    return caption.strip() if isinstance(caption, str) else ""


def read_class_folders(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """One folder of images per class, as ImageNet: the caption is the class name.

    `path` is the folder of folders. `card.options["captions"]` names the classes in the order of the sorted folders; a
    text `module:name` says where these names are. Raises DatasetError if they are not there or their number differs:
    names would be wrong.
    """
    folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    names = card.options.get("captions", folders)
    if isinstance(names, str):  # not imported before they are needed
        try:
            names = pkgutil.resolve_name(names)
        except (ImportError, AttributeError, ValueError) as error:
            raise DatasetError(f"card {card.name!r}: captions {names!r} cannot be found: {error}") from error
    names = list(names)
    if len(names) != len(folders):
        raise DatasetError(
            f"has {len(folders)} class folders, the card names {len(names)}",
            file=path,
            remedy="unpack every class; a subset would get the wrong names",
        )
    files, captions = [], []
    for folder, name in zip(folders, names):
        images = sorted(e.name for e in os.scandir(path / folder) if e.name.lower().endswith(_IMAGES))
        files += [f"{folder}/{image}" for image in images]
        captions += [name] * len(images)
    return pairs_table(card, path, files, files, [{"caption": text} for text in captions]), card
