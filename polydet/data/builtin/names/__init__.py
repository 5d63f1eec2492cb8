"""Class names of datasets, one `id<TAB>name` per line, in the order of the dataset's own files.

`objects365_v1` and `_v2`: the 365 categories of each release (v2 with the spelling corrected as Detic does).
`bigdetection`: the 600 categories of BigDetection, in its order; the ids are positions.
`openimages`: the 601 boxable classes. `openimages_challenge_2019`: the 500 classes of that challenge by machine id.
"""

from importlib.resources import files

__all__ = ["read_names"]


def read_names(name: str) -> list[tuple[str, str]]:
    """(id, name) of every class of a list."""
    text = (files(__name__) / f"{name}.txt").read_text(encoding="utf-8")
    return [tuple(line.split("\t")) for line in text.splitlines()]  # type: ignore[misc]
