"""Sections of a large json file one piece at a time, so that memory does not grow with the file."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from polydet.data.errors import DatasetError
from polydet.data.readers.json_file import load_json, section

__all__ = ["JsonSections"]

WHOLE = 400 * 2**20  # bytes; a smaller file is parsed at once (parsed json takes about four times the file)
PIECE = 64 * 2**20
_BETWEEN = re.compile(rb"\}\s*,\s*\{")
_CLOSED = re.compile(rb"\s*,\s*")


class JsonSections:
    """The lists of objects under the top-level keys of a json object.

    A small file is parsed whole. Of a large one only the section asked for is parsed, in pieces: a piece is cut
    between two objects and taken only if it parses as a list, which a cut inside a string or a nested object never
    does. If no such cut is found the file is parsed whole after all.
    """

    def __init__(self, path: Path):
        self.path = path
        self._document: Any = None
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DatasetError(f"cannot be read: {error.strerror}", file=path) from error
        if size <= WHOLE:
            self._document = load_json(path)

    def whole(self, key: str) -> list[dict]:
        """A complete section."""
        return [item for _, items in self.pieces(key) for item in items]

    def pieces(self, key: str, optional: bool = False) -> Iterator[tuple[int, list[dict]]]:
        """(next position or -1, objects) of every piece of a section."""
        position = 0
        while position >= 0:
            items, position = self.piece(key, position, optional)
            yield position, items

    def piece(self, key: str, position: int = 0, optional: bool = False) -> tuple[list[dict], int]:
        """The objects from a position on (0: the start), and the position of the next piece, -1 at the end."""
        if self._document is None:
            found = self._streamed(key, position)
            if found is not None:
                section({key: found[0]}, key, self.path)  # every entry must be an object
                return found
            self._document = load_json(self.path)
        return section(self._document, key, self.path, optional=optional), -1

    def _streamed(self, key: str, position: int) -> tuple[list[dict], int] | None:
        """As `piece`; None where the file does not have the form of one object with lists."""
        with self.path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if position == 0:
                head = re.compile(rb'"' + key.encode() + rb'"\s*:\s*\[\s*(?=[{\]])').search(data)
                if head is None:
                    return None
                position = head.end()
                if data[position : position + 1] == b"]":
                    return [], -1
            size = PIECE
            while position < len(data):
                piece = bytes(data[position : position + size])
                found = _last_cut(piece) or _to_the_end(piece)
                if found is not None:
                    items, used = found
                    return items, -1 if used < 0 else position + used
                if position + size >= len(data):
                    return None
                size *= 2
        return None


def _last_cut(piece: bytes) -> tuple[list[dict], int] | None:
    """Objects up to the last place in a piece where a list can be cut, and where the next begins."""
    cuts = [match.start() + 1 for match in _BETWEEN.finditer(piece)]
    for cut in reversed(cuts[-50:]):
        try:
            items = orjson.loads(b"[" + piece[:cut] + b"]")
        except orjson.JSONDecodeError:
            continue
        gap = _CLOSED.match(piece, cut)
        return items, gap.end() if gap else cut
    return None


def _to_the_end(piece: bytes) -> tuple[list[dict], int] | None:
    """Objects of a piece in which the list ends (-1), by a parser that stops there."""
    try:
        text = piece.decode("utf-8", errors="ignore")  # the piece may end inside a character beyond the list
        items, _ = json.JSONDecoder().raw_decode("[" + text)
    except (ValueError, RecursionError):
        return None
    return items, -1
