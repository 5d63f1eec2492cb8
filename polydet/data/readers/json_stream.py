"""Sections of a large json file one piece at a time, so that memory does not grow with the file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ijson

from polydet.data.errors import DatasetError
from polydet.data.readers.json_file import load_json, section

__all__ = ["JsonSections"]

logger = logging.getLogger(__name__)

WHOLE = 128 * 2**20  # bytes; a smaller file is parsed at once (parsed json takes about four times the file)
PIECE = 20_000  # objects
_SAID = 256 * 2**20  # bytes between two lines of progress


class JsonSections:
    """The lists of objects under the top-level keys of a json object.

    A small file is parsed whole. Of a large one the section asked for is streamed to the end of the file, so that
    broken json is found wherever it is. What the streaming parser does not take (NaN, a byte order mark) or does not
    find is parsed whole after all, and judged as a small file is.
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
        return [item for items in self.pieces(key) for item in items]

    def pieces(self, key: str, optional: bool = False) -> Iterator[list[dict]]:
        """The objects of a section in pieces, one (empty) piece if there are none.

        Raises DatasetError: broken json, no such section (unless `optional`), or one that is no list of objects.
        """
        taken = 0
        if self._document is None:
            try:
                for items in self._streamed(key):
                    section({key: items}, key, self.path, first=taken)
                    yield items
                    taken += len(items)
                if taken:
                    return
            except (ijson.JSONError, UnicodeDecodeError):  # judged by the parser of whole files
                pass
            self._document = load_json(self.path)
        rest = section(self._document, key, self.path, optional=optional)[taken:]
        if rest or not taken:
            yield rest

    def _streamed(self, key: str) -> Iterator[list[dict]]:
        size, said = self.path.stat().st_size, 0
        with self.path.open("rb") as file:
            items = ijson.items(file, f"{key}.item", use_float=True)
            while piece := list(islice(items, PIECE)):
                yield piece
                if file.tell() - said > _SAID:
                    said = file.tell()
                    logger.info("%s: %r, %.0f %% read", self.path, key, 100 * said / size)
