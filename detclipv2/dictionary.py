"""The concept dictionary: where negatives of grounding data come from."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from detclipv2.definitions import Definitions, read_concepts
from detclipv2.phrases import NounPhrases, clean_phrase
from polydet.data import label_names, load_card

logger = logging.getLogger(__name__)

_WORD = re.compile(r"[^\W_]+")


class ConceptDictionary:
    """Distinct names to draw negatives from.

    Args:
        names: the names; ones that differ in case, determiners or blanks only are one (counted in `duplicates`).
        path: or a concept file, whose names are read in the same way.

    Raises:
        ValueError: no names, or both arguments.
    """

    def __init__(self, names: Sequence[str] = (), path: str | Path | None = None) -> None:
        if bool(len(names)) == (path is not None):
            raise ValueError("a concept dictionary needs names or a path, one of the two")
        given = list(names) if path is None else [row[0] for row in read_concepts(path)]
        counts = Counter(map(clean_phrase, given))
        self.names = tuple(name for name in counts if name)
        self._words = [_words(name) for name in self.names]
        self.duplicates = len(given) - len(self.names)
        if not self.names:
            raise ValueError("the concept dictionary is empty")
        if self.duplicates:
            twice = [name for name, count in counts.items() if count > 1 or not name]
            logger.info(
                "concept dictionary: %d of %d names are duplicates or empty: %s%s",
                self.duplicates,
                len(given),
                ", ".join(map(repr, twice[:5])),
                " ..." if len(twice) > 5 else "",
            )

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, count: int, exclude: Iterable[str] = (), caption: str = "") -> list[str]:
        """Random names, without replacement, drawn from numpy's global generator.

        Args:
            count: how many; fewer where the dictionary has no more.
            exclude: names that are not negatives.
            caption: names that occur in it as whole words are left out too.
        """
        excluded = {_words(clean_phrase(name)) for name in exclude}
        text = f" {_words(caption)} "
        chosen: list[str] = []
        for i in np.random.permutation(len(self.names)):
            if len(chosen) == count:
                break
            words = self._words[i]
            if words not in excluded and f" {words} " not in text:
                chosen.append(self.names[i])
        return chosen


def _words(text: str) -> str:
    """Words alone, one blank between them: "T-shirt" and "t shirt" are the same."""
    return " ".join(_WORD.findall(text.lower()))


def count_phrases(captions: Iterable[str], phrases: Callable[[str], list[str]]) -> Counter[str]:
    """How many captions have each noun phrase."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(phrases(caption))
    return counts


def build_dictionary(
    detection: Sequence[str] = (),
    grounding: Sequence[str] = (),
    captions: Sequence[str] = (),
    min_count: int = 100,
    phrases: Callable[[str], list[str]] | None = None,
    definitions: Definitions | None = None,
) -> list[tuple[str, int, str]]:
    """Rows (name, count, definition) of a dictionary: class names, annotated phrases, frequent noun phrases.

    Args:
        detection, grounding, captions: card names. Keep the cards of a zero-shot evaluation out.
        min_count: a noun phrase of captions must occur in more captions than this.
        phrases: noun phrases of a caption, default `NounPhrases()`.
        definitions: where given, noun phrases without a definition are left out (DetCLIP filters by WordNet).

    Returns:
        class names first, then the others by falling count.
    """
    phrases = phrases or NounPhrases()
    classes = [clean_phrase(n) for names in label_names(detection).values() for n in names] if detection else []
    counts = count_phrases((record.get("caption", "") for name in captions for record in load_card(name)), phrases)
    kept = Counter({name: count for name, count in counts.items() if count > min_count})
    for card in grounding:
        kept.update(clean_phrase(a["phrase"]) for record in load_card(card) for a in record["annotations"])
    rows: dict[str, tuple[str, int, str]] = {}
    for name in [*classes, *(name for name, _ in kept.most_common())]:
        definition = definitions(name) if definitions is not None else None
        if name and name not in rows and (definition or definitions is None or name in classes):
            rows[name] = (name, kept[name], definition or "")
    return list(rows.values())
