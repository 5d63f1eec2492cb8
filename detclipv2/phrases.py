"""Noun phrases of captions: spaCy's parser where it is installed, else a light chunker without any model.

The light chunker knows no parts of speech. It cuts a caption at punctuation and at closed-class words (determiners,
prepositions, pronouns, conjunctions, auxiliaries), treats a word in -ing or -ed in front of such a word as a verb and
cuts there too, and takes what is left as noun phrases. On plain captions ("a red disc above two blue boxes") that is
what a parser finds; finite verbs in the middle of a phrase ("a man rides horses") are not recognised.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

logger = logging.getLogger(__name__)

Parser = Literal["auto", "spacy", "light"]

_DETERMINER_WORDS = """
a an the this that these those some any no each every all both several many few another other its his her their our my
your one two three four five six seven eight nine ten
"""
_BOUNDARY_WORDS = """
of in on at by for with without from to into onto over under above below between beside behind near next across against
along among around through during before after off out up down inside outside toward towards upon via as than like while
and or but nor so if when where which who whom whose that because is are was were be been being am has have had do does
did can could will would shall should may might must not it they he she we you i them him us there here then also very
just only too s
"""
_SIDE_WORDS = "left right front top bottom back middle side"
_DETERMINERS = frozenset(_DETERMINER_WORDS.split())
_BOUNDARIES = frozenset(_BOUNDARY_WORDS.split())
_SIDES = frozenset(_SIDE_WORDS.split())
_AROUND = " \t\n\"'.,;:!?()[]"
_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]")


class NounPhrases:
    """Caption -> noun phrases in the order of their appearance, each once, lower case, without determiners.

    Args:
        parser: `spacy`, `light` (see the module), or `auto`: spaCy where it and its model are installed.
        model: spaCy's model.
        max_words: longer phrases of the light chunker keep their last words.
    """

    def __init__(self, parser: Parser = "auto", model: str = "en_core_web_sm", max_words: int = 5) -> None:
        if parser not in ("auto", "spacy", "light"):
            raise ValueError(f"parser must be auto, spacy or light, not {parser!r}")
        self.parser, self.model, self.max_words = parser, model, max_words
        self._chunk: Callable[[str], list[str]] | None = None

    def __call__(self, caption: str) -> list[str]:
        """See the class.

        Raises:
            RuntimeError: spaCy is asked for and not installed; the message says how to get it.
        """
        if self._chunk is None:
            self._chunk = self._choose()
        phrases = (clean_phrase(phrase) for phrase in self._chunk(caption))
        return list(dict.fromkeys(phrase for phrase in phrases if phrase))

    def _choose(self) -> Callable[[str], list[str]]:
        usable = all(importlib.util.find_spec(name) is not None for name in ("spacy", self.model))
        if self.parser == "light" or (self.parser == "auto" and not usable):
            if self.parser == "auto":
                logger.info("spaCy with %s is not installed: noun phrases come from the light chunker", self.model)
            return self._light
        if not usable:
            raise RuntimeError(
                f"noun phrases by spaCy need the package and its model: `pip install polydet[phrases]` and `python -m "
                f"spacy download {self.model}`; NounPhrases(parser='light') works without"
            )
        return self._spacy()

    def _spacy(self) -> Callable[[str], list[str]]:
        import spacy

        parse: Any = spacy.load(self.model, exclude=["ner", "lemmatizer"])

        def chunk(caption: str) -> list[str]:
            chunks = (noun for noun in parse(caption).noun_chunks if noun.root.pos_ != "PRON")
            return [noun.text for noun in chunks]

        return chunk

    def _light(self, caption: str) -> list[str]:
        return light_noun_phrases(caption, self.max_words)


def light_noun_phrases(caption: str, max_words: int = 5) -> list[str]:
    """Noun phrases without a parser, see the module."""
    words = _TOKEN.findall(caption.lower())
    phrases: list[list[str]] = [[]]
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        after = words[i + 1] if i + 1 < len(words) else ""
        if _is_boundary(word, before, after):
            phrases.append([])
        elif word in _DETERMINERS:
            phrases.append([word])
        else:
            phrases[-1].append(word)
    kept = ([word for word in phrase if word not in _DETERMINERS] for phrase in phrases)
    return [" ".join(phrase[-max_words:]) for phrase in kept if any(word[0].isalpha() for word in phrase)]


def _is_boundary(word: str, before: str, after: str) -> bool:
    if not word[0].isalnum() or word in _BOUNDARIES and word not in _DETERMINERS:
        return True
    if word in _SIDES and after == "of" and before not in _DETERMINERS:
        return True
    verbal = word.endswith(("ing", "ed")) and len(word) > 4 and before not in _DETERMINERS
    return verbal and (after in _DETERMINERS or after in _BOUNDARIES)


@lru_cache(maxsize=1 << 16)
def clean_phrase(phrase: str) -> str:
    """One spelling of a phrase: lower case, single blanks, no punctuation around it, no determiners in front."""
    words = phrase.replace("_", " ").lower().strip(_AROUND).split()
    while words and (words[0] in _DETERMINERS or not words[0].strip(_AROUND)):
        words.pop(0)
    return " ".join(words).strip(_AROUND)
