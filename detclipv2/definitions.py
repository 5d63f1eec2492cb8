"""Concept enrichment: a class name is followed by its definition (DetCLIP), in training and in testing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from polydet.files import whole_file
from polydet.model_file import THIS_FILE, read_header
from polydet.text import clean_name


class Definitions(Protocol):
    """Definition of a name, or None for a name without one."""

    def __call__(self, name: str) -> str | None: ...


def enrich(name: str, definitions: Definitions | None, template: str = "{name}, {definition}") -> str:
    """The sentence that stands for a class: its name, and its definition where there is one."""
    name = clean_name(name)
    definition = definitions(name) if definitions is not None else None
    return template.format(name=name, definition=definition) if definition else name


class _Portable:
    def portable(self, node: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The config of these definitions in a model file, which holds those of its words."""
        return {"_target_": "detclipv2.StoredDefinitions", "file": THIS_FILE, "otherwise": node}


class WordNetDefinitions(_Portable):
    """Gloss of a noun's first sense in WordNet (through nltk); compounds that WordNet lacks take none.

    The corpus is read at the first name.
    """

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def __call__(self, name: str) -> str | None:
        """See `Definitions`.

        Raises:
            RuntimeError: the corpus is absent; the message says how to get it.
        """
        key = clean_name(name).lower()
        if key not in self._known:
            senses = load_wordnet().synsets(key.replace(" ", "_"), pos="n")
            self._known[key] = senses[0].definition() if senses else None
        return self._known[key]


def load_wordnet() -> Any:
    """nltk's WordNet reader.

    Raises:
        RuntimeError: the corpus is absent.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise RuntimeError(
            "definitions come from WordNet, and nltk does not find its corpus. Where there is network: `python -m "
            "nltk.downloader wordnet`; elsewhere unpack wordnet.zip to corpora/wordnet in a folder that NLTK_DATA "
            "names. Or give a file of definitions (tools/build_concepts.py writes one), 'model.definitions={_target_: "
            "detclipv2.FileDefinitions, path: FILE}', or none: model.definitions=null."
        ) from error
    return wordnet


class FileDefinitions(_Portable):
    """Definitions from a tab-separated file `name, count, definition`, as `tools/build_concepts.py` writes it.

    Raises:
        ValueError: a line that cannot be read, with file and line.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: Mapping[str, str] | None = None

    def __call__(self, name: str) -> str | None:
        """See `Definitions`."""
        if self._known is None:
            self._known = {clean_name(n).lower(): text for n, _, text in read_concepts(self.path) if text}
        return self._known.get(clean_name(name).lower())


class StoredDefinitions:
    """Definitions of the words of a model file; of any other name those of another source.

    Args:
        file: model file of DetCLIPv2.
        otherwise: asked for names that the file does not know.
    """

    def __init__(self, file: str, otherwise: Definitions | None = None) -> None:
        words = read_header(file).get("words") or {}
        self._known = {clean_name(name).lower(): text for name, text in (words.get("definitions") or {}).items()}
        self.otherwise = otherwise

    def __call__(self, name: str) -> str | None:
        """See `Definitions`; raises what the other source does."""
        key = clean_name(name).lower()
        if key in self._known or self.otherwise is None:
            return self._known.get(key)
        return self.otherwise(name)

    def portable(self, node: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The config of these definitions in another model file."""
        return {**node, "file": THIS_FILE}


def read_concepts(path: str | Path) -> list[tuple[str, int, str]]:
    """Rows (name, count, definition) of a concept file; count 0 and definition "" where the file has none.

    Raises:
        ValueError: a line that cannot be read, a file without names, or one that is not UTF-8; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"concept file {str(path)!r} does not exist; tools/build_concepts.py writes one")
    rows: list[tuple[str, int, str]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"concept file {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    with io.StringIO(text) as handle:
        for number, fields in enumerate(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if not fields or fields[0].startswith("#"):
                continue
            fields += [""] * (3 - len(fields))
            try:
                rows.append((fields[0].strip(), int(fields[1] or 0), fields[2].strip()))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: the count {fields[1]!r} is not a number") from error
            if not rows[-1][0].isprintable():
                raise ValueError(f"{path}, line {number}: the name {rows[-1][0]!r} has signs that cannot be printed")
            if not rows[-1][0] or len(fields) > 3:
                raise ValueError(f"{path}, line {number}: expected `name<TAB>count<TAB>definition`")
    if not rows:
        raise ValueError(f"concept file {str(path)!r} names no concept")
    return rows


def write_concepts(path: str | Path, rows: list[tuple[str, int, str]]) -> None:
    """Write rows (name, count, definition), whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.write("# name\tcount\tdefinition\n")
        for name, count, definition in rows:
            cells = (" ".join(str(cell).split()) for cell in (name, count, definition))
            handle.write("\t".join(cells) + "\n")
