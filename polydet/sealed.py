"""Checkpoints that carry a digest of themselves, in the comment that a zip file may end with."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from polydet.files import masked_digest, whole_file

_MARK = b"polydet.sha256:"
_LENGTH = len(_MARK) + 64
_FOLDER = 0x10  # attribute of a zip file's member
_BARE_END = b"PK\x05\x06"  # the end record of a zip file, 22 bytes whose last two are the comment's length


def save_sealed(data: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` of plain containers and tensors, whole or not at all, with a SHA-256 over every byte.

    ``torch.load`` opens it as any other file of its own.

    Raises:
        OSError: see :func:`polydet.files.whole_file`.
    """
    with whole_file(path) as temporary:
        torch.save(data, temporary)
        with temporary.open("r+b") as file:
            start = file.seek(-22, os.SEEK_END)
            if file.read(4) != _BARE_END:
                raise RuntimeError(f"torch.save ends its files in another way than before, at {start}")
            file.seek(-2, os.SEEK_END)
            file.write(_LENGTH.to_bytes(2, "little") + _MARK + b"0" * 64)
            digits = file.tell() - 64
        digest = masked_digest(temporary, digits)
        with temporary.open("r+b") as file:
            file.seek(digits)
            file.write(digest.encode())


def is_damaged(path: str | os.PathLike[str]) -> str:
    """What is wrong with a zip file of weights, by its own digest or else by the checksums of its members; or ""."""
    path = Path(path)
    with path.open("rb") as file:
        file.seek(-min(_LENGTH, path.stat().st_size), os.SEEK_END)
        end = file.read()
    if _MARK in end and not end.startswith(_MARK):
        return "its end is missing"
    if end.startswith(_MARK):
        same = masked_digest(path, path.stat().st_size - 64) == end[len(_MARK) :].decode("latin1")
        return "" if same else "its SHA-256 is not the one that was written into it"
    with zipfile.ZipFile(path) as archive:
        member = archive.testzip()
        for info in archive.infolist():  # torch does not read one that is marked as a folder: its tensor is random
            if info.external_attr & _FOLDER and info.file_size:
                member = info.filename
    return "" if member is None else f"{member} in it is not what was written"
