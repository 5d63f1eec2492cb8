"""A model as one file: safetensors whose header says everything that opening it takes.

The header (``__metadata__`` of safetensors) has two texts: ``polydet``, a JSON object with the keys of
:class:`ModelFile.header`, and ``polydet.sha256``, a digest over every byte of the file, its own digits taken as zeros.
Tensors are the state dict under its own names, and :data:`EMBEDDINGS` where the model speaks words.  Nothing in the
file is run: it is numbers and texts.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polydet.files import masked_digest, whole_file

__all__ = [
    "EMBEDDINGS",
    "FORMAT",
    "THIS_FILE",
    "ModelFile",
    "ModelFileError",
    "is_model_file",
    "read_embeddings",
    "read_header",
    "read_model_file",
    "write_model_file",
]

FORMAT = 1  # raise when a reader of before could misunderstand a file
EMBEDDINGS = "vocabulary/embeddings"
THIS_FILE = "<this file>"  # in the config of a header: the path of the file itself
_HEADER, _DIGEST = "polydet", "polydet.sha256"
_LONGEST_HEADER = 100_000_000  # safetensors' own limit, bytes
_BLANK = "0" * 64


class ModelFileError(RuntimeError):
    """A model file that is damaged, incomplete, or of another kind or version."""


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        header: ``format``, ``config`` and what else ``docs/model_file.md`` lists.
        state: the model's state dict, on the CPU.
        embeddings: ``[n, D]`` rows of the words in ``header["words"]``, or None.
    """

    header: dict[str, Any]
    state: dict[str, Tensor]
    embeddings: Tensor | None = None


def write_model_file(path: str | os.PathLike[str], file: ModelFile) -> None:
    """Write a model file, whole or not at all; equal contents give equal bytes.

    Tensors that share memory are written one by one.

    Raises:
        ModelFileError: a header that JSON cannot say.
        OSError: see :func:`polydet.files.whole_file`.
    """
    try:
        text = json.dumps({**file.header, "format": FORMAT}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the header cannot be written: {error}") from error
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(file.state.items())}
    if file.embeddings is not None:
        tensors[EMBEDDINGS] = file.embeddings.detach().cpu().contiguous().clone()
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {_HEADER: text, _DIGEST: _BLANK})
        start, digest = _digest(temporary)
        with temporary.open("r+b") as handle:
            handle.seek(start)
            handle.write(digest.encode())


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file says of itself that it is a model file; it may still be damaged."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        head = _head(handle)
    return head is not None and any(f'"{key}":'.encode() in head for key in (_DIGEST, _HEADER))


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header alone; the digest is not checked.

    Raises:
        ModelFileError: no such file, not a model file, or one of a later format.
    """
    if not is_model_file(path):
        kind = "is not a model file" if Path(path).is_file() else "does not exist"
        raise ModelFileError(f"{str(path)!r} {kind}")
    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads((handle.metadata() or {})[_HEADER])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ModelFileError(f"model file {str(path)!r} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise ModelFileError(f"model file {str(path)!r} has no config in its header")
    if header.get("format") != FORMAT:
        raise ModelFileError(
            f"model file {str(path)!r} has format {header.get('format')!r}, this version reads {FORMAT}: "
            "open it with the version that wrote it, or a later one"
        )
    return header


def read_model_file(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> ModelFile:
    """Header and tensors, checked against the digest.

    Raises:
        ModelFileError: no such file, not a model file, a later format, or any byte that is not what was written.
    """
    header = read_header(path)
    start, digest = _digest(Path(path))
    with Path(path).open("rb") as handle:
        handle.seek(start)
        stored = handle.read(64)
    if stored != digest.encode():
        raise ModelFileError(
            f"model file {str(path)!r} is damaged: its SHA-256 is not the one that was written into it. Fetch or copy "
            "the file again"
        )
    with safe_open(path, framework="pt", device=str(device)) as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    embeddings = tensors.pop(EMBEDDINGS, None)
    return ModelFile(header, tensors, embeddings)


def read_embeddings(path: str | os.PathLike[str]) -> Tensor:
    """Rows ``[n, D]`` of the words of a model file; the digest is not checked.

    Raises:
        ModelFileError: the file has none.
    """
    with safe_open(path, framework="pt") as handle:
        if EMBEDDINGS not in handle.keys():  # noqa: SIM118
            raise ModelFileError(f"model file {str(path)!r} has no tensor {EMBEDDINGS}")
        return handle.get_tensor(EMBEDDINGS)


def _head(handle: Any) -> bytes | None:
    """The JSON header of a safetensors file, and its length before it; None for a file of another kind."""
    size = handle.read(8)
    length = int.from_bytes(size, "little")
    if len(size) < 8 or not 2 <= length <= _LONGEST_HEADER:
        return None
    text = handle.read(length)
    return size + text if len(text) == length and text[:1] == b"{" else None


def _digest(path: Path) -> tuple[int, str]:
    """(where the digest's 64 digits are, the digest that they should be)."""
    with path.open("rb") as handle:
        head = _head(handle)
        mark = f'"{_DIGEST}":"'.encode()
        if head is None or head.count(mark) != 1:
            raise ModelFileError(f"model file {str(path)!r} is damaged: its header has no digest")
        start = head.index(mark) + len(mark)
    return start, masked_digest(path, start)
