"""Json files and their entries, read so that an error names the culprit."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from polydet.data.errors import DatasetError

__all__ = ["column", "load_json", "safe_relative_path", "section"]


def load_json(path: Path) -> Any:
    """A json file as Python objects. NaN and Infinity are accepted here and judged by the caller.

    Raises DatasetError: missing, unreadable, not UTF-8, or broken json (with line and column).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"cannot be read: {error.strerror or error}", file=path, remedy="check path and rights"
        ) from error
    enabled = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: three times faster
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _load_lenient(data, path)
    finally:
        if enabled:
            gc.enable()


def _load_lenient(data: bytes, path: Path) -> Any:
    """Python's parser: takes NaN and a byte order mark, and says where a broken file breaks."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DatasetError(
            "is not UTF-8 text", file=path, where=f"byte {error.start}", remedy="save it as UTF-8"
        ) from error
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        where = f"line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else None
        raise DatasetError(
            f"is not valid json ({getattr(error, 'msg', error)})",
            file=path,
            where=where,
            remedy="an interrupted download is the usual cause: fetch or write the file again",
        ) from error


def section(document: Any, key: str, path: Path, *, optional: bool = False, first: int = 0) -> list[dict]:
    """The list of objects under a top-level key; `first` is the position of its first object, for messages."""
    if not isinstance(document, dict):
        raise DatasetError(
            f"holds a {type(document).__name__}, not an object with images and categories",
            file=path,
            remedy="give the dataset's annotation file (a results file is a list)",
        )
    if key not in document:
        if optional:
            return []
        raise DatasetError(f"has no key {key!r}", file=path, remedy=f"found {sorted(map(str, document))[:8]}")
    items = document[key]
    if not isinstance(items, list):
        raise DatasetError(f"key {key!r} is not a list", file=path)
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise DatasetError("entry is not an object", file=path, where=f"{key}[{first + i}]")
    return items


_MISSING = object()


def column(
    items: Sequence[dict], key: str, kind: str, path: Path, name: str, default: Any = _MISSING, first: int = 0
) -> Any:
    """One key of every entry as an array, checked.

    Args:
        kind: `int` -> int64 [n]; `str` -> list of str; `id` -> int64 [n] or list of str; `box` -> float64 [n, 4].
        name: the section, for messages.
        default: used where the key is missing; without it a missing key is an error.
        first: position of the first of the items in the section, for messages.
    """
    try:
        values = [item[key] for item in items] if default is _MISSING else [item.get(key, default) for item in items]
    except KeyError:
        i = next(i for i, item in enumerate(items) if key not in item)
        raise DatasetError(f"misses the key {key!r}", file=path, where=_place(items, i, name, first)) from None
    convert, wanted = _KINDS[kind]
    result = convert(values)
    if result is None:
        i = next((i for i, value in enumerate(values) if convert([value]) is None), 0)
        raise DatasetError(
            f"{key!r} must be {wanted}, found {_short(values[i])}", file=path, where=_place(items, i, name, first)
        )
    return result


def _integers(values: list) -> np.ndarray | None:
    if not all(type(value) is int for value in values):
        return None
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return None


def _strings(values: list) -> list[str] | None:
    return values if all(type(value) is str for value in values) else None


def _identifiers(values: list) -> np.ndarray | list[str] | None:
    return _strings(values) if values and type(values[0]) is str else _integers(values)


def _boxes(values: list) -> np.ndarray | None:
    number = {int, float}
    for value in values:
        if type(value) is not list or len(value) != 4 or not number.issuperset(map(type, value)):
            return None
    try:
        return np.array(values, np.float64).reshape(-1, 4)
    except OverflowError:
        return np.array([[_number(x) for x in value] for value in values], np.float64).reshape(-1, 4)


def _number(value: float) -> float:
    """A json number as a float; one too large for a float is infinite, which the box check then drops."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


_KINDS: dict[str, tuple[Callable[[list], Any], str]] = {
    "int": (_integers, "an integer"),
    "str": (_strings, "text"),
    "id": (_identifiers, "an integer (or, in all entries, text)"),
    "box": (_boxes, "a list of four numbers"),
}


def _place(items: Sequence[dict], i: int, name: str, first: int) -> str:
    identity = f" (id {items[i]['id']!r})" if "id" in items[i] else ""
    return f"{name}[{first + i}]{identity}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def safe_relative_path(name: str, path: Path, where: str) -> str:
    """An image's file name, refused if it is empty, absolute, climbs out of the image folder or has backslashes."""
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0]:
        raise DatasetError(
            f"file name {_short(name)} is empty, absolute or leaves the image folder",
            file=path,
            where=where,
            remedy="write names relative to the image folder",
        )
    if "\\" in name:
        raise DatasetError(
            f"file name {_short(name)} has the separator of Windows",
            file=path,
            where=where,
            remedy="write '/' in its place, in all names",
        )
    return name
