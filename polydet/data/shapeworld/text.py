"""Sentences about scenes."""

from __future__ import annotations

import numpy as np

from polydet.data.shapeworld.names import COARSE, FINE, NOVEL
from polydet.data.shapeworld.world import Scene

__all__ = ["describe"]

_NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, list[tuple[int, int, list[int]]]]:
    """A sentence that names every object of a scene ("a red disc above two blue boxes").

    Returns:
        the sentence, and per noun phrase its character span (start, end) and the objects it stands for.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, shape in enumerate(scene.shapes):
        groups.setdefault((shape.colour, shape.kind), []).append(i)
    sentence = ""
    phrases = []
    previous: list[int] = []
    for number, ((colour, kind), members) in enumerate(groups.items()):
        if number:
            sentence += f" {_relation(scene, previous, members)} " if number == 1 else " and "
        phrase = _phrase(colour, _name(kind, rng), len(members), with_colour=rng.random() < 0.7)
        phrases.append((len(sentence), len(sentence) + len(phrase), members))
        sentence += phrase
        previous = members
    return sentence or "an empty scene", phrases


def _name(kind: str, rng: np.random.Generator) -> str:
    names = [NOVEL[kind]] if kind in NOVEL else [COARSE[kind], COARSE[kind], next(iter(FINE[kind]))]
    return names[rng.integers(len(names))].replace("_", " ")


def _phrase(colour: str, name: str, count: int, with_colour: bool) -> str:
    words = f"{colour} {name}" if with_colour else name
    if count == 1:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    return f"{_NUMBERS.get(count, 'many')} {_plural(words)}"


def _plural(words: str) -> str:
    return words + ("es" if words.endswith(("s", "x", "ch", "sh")) else "s")


def _relation(scene: Scene, first: list[int], second: list[int]) -> str:
    """Where the first group is, seen from the second."""
    a, b = (np.mean([scene.shapes[i].outline.mean(axis=0) for i in group], axis=0) for group in (first, second))
    dx, dy = a - b
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
