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
        path: or a concept file.

    Raises:
        ValueError: no names, or both arguments.
    """

    def __init__(self, names: Sequence[str] = (), path: str | Path | None = None) -> None:
        if bool(len(names)) == (path is not None):
            raise ValueError("a concept dictionary needs names or a path, one of the two")
        given = [clean_phrase(name) for name in names] if path is None else [r[0] for r in read_concepts(path)]
        self.names = tuple(dict.fromkeys(name for name in given if name))
        self.duplicates = len(given) - len(self.names)
        if not self.names:
            raise ValueError("the concept dictionary is empty")
        if self.duplicates:
            logger.info("concept dictionary: %d of %d names are duplicates or empty", self.duplicates, len(given))

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, count: int, exclude: Iterable[str] = (), caption: str = "") -> list[str]:
        """Random names, without replacement, drawn from numpy's global generator.

        Args:
            count: how many; fewer where the dictionary has no more.
            exclude: names that are not negatives.
            caption: names that occur in it as whole words are left out too.
        """
        excluded = {clean_phrase(name) for name in exclude}
        text = f" {' '.join(_WORD.findall(caption.lower()))} "
        chosen: list[str] = []
        for i in np.random.permutation(len(self.names)):
            if len(chosen) == count:
                break
            name = self.names[i]
            if name not in excluded and f" {name} " not in text:
                chosen.append(name)
        return chosen


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
