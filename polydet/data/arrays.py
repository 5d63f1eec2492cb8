"""A folder of arrays on disk, memory-mapped when it is read, with checksums that find what a disk or a kill changed."""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DamagedArrays", "load_arrays", "read_meta", "save_arrays"]


class DamagedArrays(ValueError):
    """A folder of arrays that is not as it was written; the message names the file."""


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], meta_name: str) -> None:
    """Write arrays as ``NAME.npy`` and ``meta`` (json) with a checksum of each, which marks the folder complete.

    Args:
        folder: exists and is empty; `polydet.files.whole_folder` gives one that appears whole.
        meta_name: file name of ``meta``.
    """
    sums = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array)
        sums[name] = _checksum(path)
    text = json.dumps({**meta, "checksums": sums})
    (folder / meta_name).write_text(f'{{"checksum": {zlib.crc32(text.encode())}, "content": {text}}}')


def read_meta(folder: Path, meta_name: str) -> dict[str, Any]:
    """What `save_arrays` wrote as ``meta``.

    Raises:
        FileNotFoundError: the folder is absent or was never finished.
        DamagedArrays: the file is not as it was written, or of a version without checksums.
    """
    path = folder / meta_name
    try:
        text = path.read_text()
        document = json.loads(text)
        content = document["content"]
        whole = zlib.crc32(json.dumps(content).encode()) == document["checksum"]
        if not whole or not isinstance(content["checksums"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DamagedArrays(f"{path} is damaged") from error
    return content


def load_arrays(folder: Path, meta_name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays that `save_arrays` wrote, memory-mapped and read-only, and the meta data.

    Every byte is read once, at about 3 GB a second, and compared with its checksum.

    Raises:
        FileNotFoundError: the folder is absent or was never finished.
        DamagedArrays: a file is missing, cut or has other bytes.
    """
    meta = read_meta(folder, meta_name)
    arrays = {}
    for name, expected in meta["checksums"].items():
        path = folder / f"{name}.npy"
        try:
            if _checksum(path) != expected:
                raise DamagedArrays(f"{path} is damaged: its checksum differs")
            arrays[name] = _mapped(path)
        except (OSError, ValueError) as error:
            if isinstance(error, DamagedArrays):
                raise
            raise DamagedArrays(f"{path} is damaged: {error}") from error
    return arrays, meta


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        array = np.load(path, allow_pickle=False)
    return np.asarray(array)  # a plain view of the mapped memory: memmap's own indexing is slow


def _checksum(path: Path) -> int:
    """CRC-32 of a file's bytes: it finds every flip of up to 32 neighbouring bits."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return zlib.crc32(data)
