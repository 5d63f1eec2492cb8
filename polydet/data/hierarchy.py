"""Class hierarchies (OpenImages' json tree)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polydet.data.card import DatasetCard, resolve
from polydet.data.errors import DatasetError
from polydet.data.readers.json_file import load_json

__all__ = ["ancestor_matrix", "read_hierarchy"]


def read_hierarchy(path: Path, mapping: Mapping[Any, int]) -> np.ndarray:
    """Which class is an ancestor of which: bool [K, K], entry (a, b) true if b is a or an ancestor of a.

    The file is a tree of `{"LabelName": id, "Subcategory": [...]}`; a class may occur in several places. Nodes that
    are not in `mapping` (the root "Entity") pass their place on. Raises DatasetError for another form, or if no class
    of the card occurs.
    """
    result = np.eye(len(mapping), dtype=bool)
    seen = set()

    def walk(node: Any, above: tuple[int, ...], depth: int) -> None:
        is_node = isinstance(node, dict) and isinstance(node.get("LabelName"), str)
        if not is_node or not isinstance(node.get("Subcategory", []), list) or depth > 100:
            where = f"below {list(mapping)[above[-1]]!r}" if above else "at its top"
            raise DatasetError("is not a tree of objects with 'LabelName' and 'Subcategory'", file=path, where=where)
        k = mapping.get(node["LabelName"])
        if k is not None:
            seen.add(k)
            result[k, list(above)] = True
            above = (*above, k)
        for child in node.get("Subcategory", []):
            walk(child, above, depth + 1)

    walk(load_json(path), (), 0)
    if not seen:
        raise DatasetError("holds none of the card's classes", file=path, remedy="use the hierarchy of this dataset")
    return result


def ancestor_matrix(card: DatasetCard) -> np.ndarray:
    """`read_hierarchy` of a card; the identity for a card without a hierarchy. bool [K, K]."""
    classes = card.classes or ()
    if card.hierarchy is None:
        return np.eye(len(classes), dtype=bool)
    return read_hierarchy(resolve(card.hierarchy), {id_: k for k, id_ in enumerate(card.category_ids or ())})
