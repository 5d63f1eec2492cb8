"""Files of weights, whoever wrote them, read without running anything that is in them."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from polydet.model_file import ModelFileError, is_model_file, read_model_file
from polydet.sealed import is_damaged

_ZIP, _TORCH_MAGIC = b"PK\x03\x04", 0x1950A86A20F9469CFC6C
_UNKNOWN = re.compile(r"GLOBAL ([\w.]+)")
_REASON = re.compile(r"(Trying to|Unsupported|Can only|Found)[^\n]*?(?=\.?\s*(\n|$))")
_STATES = ("model", "state_dict", "model_state", "model_state_dict", "blobs")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


class Inert:
    """Stands for an object of a class that is never imported (a script's arguments, a logger's history)."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint as ``{"model": state dict, ...}``, whatever its name ends in.

    safetensors, what ``torch.save`` writes, and pickles of arrays (Detectron2's and Detectron's ``.pkl``). Nothing in
    the file is run: of a class other than tensors, arrays and plain containers there is an :class:`Inert` object in
    the result.

    Raises:
        CheckpointError: no such file, a damaged one, something else than weights (named), or one without a state dict.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {str(path)!r} {kind}")
    if is_model_file(path):
        return _of_model_file(path)
    with path.open("rb") as file:
        head = file.read(512)
    try:
        _refuse_other_files(path, head)
        data = _read(path, head)
    except CheckpointError:
        raise
    except Exception as error:  # of zip, pickle, torch or numpy: a damaged file makes them raise almost anything
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: {type(error).__name__}: {error}") from error
    if isinstance(data, Inert):
        raise CheckpointError(
            f"{str(path)!r} holds a whole pickled object in place of weights; where its code is, save its state_dict()"
        )
    for key in _STATES:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping) and _tensors(data[key]):
            return {**data, "model": _tensors(data[key])}
    if not isinstance(data, Mapping) or not _tensors(data):
        raise CheckpointError(f"checkpoint {str(path)!r} has no state dict (keys {', '.join(_STATES)}, or tensors)")
    return {"model": _tensors(data)}


def _of_model_file(path: Path) -> dict[str, Any]:
    try:
        file = read_model_file(path)
    except ModelFileError as error:
        raise CheckpointError(str(error)) from error
    return {"model": file.state, "labels": file.header.get("labels")}


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as tensors; Detectron's momentum and what is no array at all are left out."""
    arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray) and v.dtype != object}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items() if not k.endswith("_momentum")}
    return {**{k: v for k, v in state.items() if isinstance(v, Tensor)}, **tensors}


def _refuse_other_files(path: Path, head: bytes) -> None:
    text = head.lstrip().lower()
    found = ""
    if not head:
        found = "is empty: fetch it again"
    elif head.startswith(b"version https://git-lfs"):
        found = "is a git-lfs pointer, the weights are elsewhere: run `git lfs pull`, or fetch the file itself"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "is a web page: the download gave a page (a login, a confirmation, an error) in place of the file"
    elif text.startswith(b"{") and b'"error"' in text:
        found = "is an error message of a server, not weights"
    elif head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")) or head[257:262] == b"ustar":
        found = "is a packed archive: unpack it and name the file of weights in it"
    elif head.startswith(_ZIP) and not zipfile.is_zipfile(path):
        found = "is cut off: its end is missing. Fetch it again"
    elif head.startswith(_ZIP) and not _is_torch_zip(path):
        found = "is a packed archive: unpack it and name the file of weights in it"
    elif _is_safetensors(head):
        size = path.stat().st_size
        if 8 + int.from_bytes(head[:8], "little") > size:
            found = f"is cut off: its header alone is longer than the file ({size} bytes). Fetch it again"
    if found:
        raise CheckpointError(f"{str(path)!r} {found}")


def _is_torch_zip(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _read(path: Path, head: bytes) -> Any:
    if _is_safetensors(head):
        from safetensors.torch import load_file

        return load_file(path)
    if head.startswith(_ZIP) or _is_old_torch(head):
        return _read_torch(path, is_zip=head.startswith(_ZIP))
    if head.startswith(b"\x80") or path.suffix == ".pkl":
        with path.open("rb") as file:
            return ArrayUnpickler(file).load()
    raise CheckpointError(
        f"{str(path)!r} is no file of weights: it starts with {head[:16]!r}, which is neither safetensors nor "
        "torch.save's format nor a pickle"
    )


def _is_old_torch(head: bytes) -> bool:
    """What ``torch.save`` wrote before 1.6: several pickles, the first of which is a number."""
    try:
        return ArrayUnpickler(io.BytesIO(head)).load() == _TORCH_MAGIC
    except Exception:
        return False


def _check_sums(path: Path) -> None:
    """Compare the file with the digest or checksums that it carries, which ``torch.load`` does not."""
    if found := is_damaged(path):
        raise CheckpointError(
            f"checkpoint {str(path)!r} is damaged: {found}. Fetch or copy it again, or go on from an earlier one"
        )


def _read_torch(path: Path, is_zip: bool) -> Any:
    """``torch.load`` with ``weights_only``, unknown classes being :class:`Inert`."""
    if is_zip:
        _check_sums(path)
    inert: dict[str, type] = {}
    if is_zip:
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
            inert[name] = _inert(name)
    while True:
        try:
            with torch.serialization.safe_globals([(stub, name) for name, stub in inert.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or unknown[1] in inert:
                reason = _REASON.search(str(error))
                raise CheckpointError(
                    f"{str(path)!r} cannot be read without running what is in it, and that is not done: "
                    f"{reason[0] if reason else error}. Where its code is, save its state_dict() alone"
                ) from error
            inert[unknown[1]] = _inert(unknown[1])


def _inert(name: str) -> type:
    return type("Inert_" + re.sub(r"\W", "_", name), (Inert,), {})


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 2's strings of bytes were pickled."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _array(subtype: type, shape: Any, kind: Any) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, shape if isinstance(shape, tuple) else (0,), "b")


def _from_buffer(data: Any, kind: Any, shape: Any, order: str = "C") -> np.ndarray:
    if not isinstance(kind, np.dtype) or kind.hasobject:
        raise pickle.UnpicklingError("an array of objects")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: bytes | str = b"") -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("a scalar that is no number")
    return np.frombuffer(raw, dtype)[0]


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays in plain containers.

    Names in the pickle are looked up in a table of functions of this module; nothing is imported for it, and a class
    that is not in the table becomes an :class:`Inert` one.
    """

    _NAMES: Mapping[str, Any] = {
        "_reconstruct": _array,
        "_frombuffer": _from_buffer,
        "scalar": _scalar,
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "OrderedDict": OrderedDict,
        "encode": _latin1,
    }
    _MODULES = frozenset(
        ("numpy", "collections", "_codecs")
        + tuple(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric"))
    )

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """See the class."""
        if module in self._MODULES and name in self._NAMES:
            return self._NAMES[name]
        return _inert(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Storages of torch are in its own files only."""
        raise pickle.UnpicklingError("a pickle with persistent ids, which is not an array's")
