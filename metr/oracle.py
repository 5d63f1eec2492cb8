"""How much a limited number of queries a category can find at best, from annotations alone.

METR gives 100 queries to 20 categories, so 5 to each, although an image may hold dozens of persons. The oracle keeps
the best N boxes of each image and category, all of them right: its recall bounds that of any detector with N queries
a category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}


@dataclass(frozen=True)
class Objects:
    """Objects of a dataset, crowds left out: `image`, `category` int64 ``[n]``, `area` ``[n]`` of the box, pixels^2."""

    image: np.ndarray
    category: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def rank_in_group(objects: Objects) -> np.ndarray:
    """Place of each object among those of its image and category, the largest first, int64 ``[n]``.

    Which boxes a detector would keep is unknown; large ones are found more easily, so small ones go first.
    """
    order = np.lexsort((-objects.area, objects.category, objects.image))
    image, category = objects.image[order], objects.category[order]
    first = np.flatnonzero((np.diff(image, prepend=-1) != 0) | (np.diff(category, prepend=-1) != 0))
    lengths = np.diff(np.append(first, len(order)))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, lengths)
    return rank


def category_rank(objects: Objects) -> np.ndarray:
    """Place of each object's category among those of its image, the most frequent first, int64 ``[n]``."""
    pairs, inverse, counts = np.unique(
        np.stack((objects.image, objects.category)), axis=1, return_inverse=True, return_counts=True
    )
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    first = np.flatnonzero(np.diff(pairs[0][order], prepend=-1) != 0)
    lengths = np.diff(np.append(first, len(order)))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, lengths)
    return rank[inverse.reshape(-1)]


def kept_uniform(objects: Objects, per_category: int, top_k: int | None = None) -> np.ndarray:
    """Objects that `per_category` queries for each of at most `top_k` categories can find, bool ``[n]``."""
    kept = rank_in_group(objects) < per_category
    return kept if top_k is None else kept & (category_rank(objects) < top_k)


def kept_adaptive(objects: Objects, num_queries: int) -> np.ndarray:
    """Objects that `num_queries` freely assigned queries an image can find, one of each category first."""
    rank = rank_in_group(objects)
    order = np.lexsort((-objects.area, rank > 0, objects.image))
    first = np.flatnonzero(np.diff(objects.image[order], prepend=-1) != 0)
    lengths = np.diff(np.append(first, len(order)))
    kept = np.empty(len(order), dtype=bool)
    kept[order] = np.arange(len(order)) - np.repeat(first, lengths) < num_queries
    return kept


def bounds(objects: Objects, kept: np.ndarray) -> dict[str, float]:
    """What is left, in percent: `recall` of all objects, by size (box area as COCO's limits), `class_recall` averaged
    over categories, and `AP`, which a detector would reach that finds exactly these, with 101-point interpolation."""
    result = {"recall": 100 * float(kept.mean())}
    for name, (low, high) in SIZES.items():
        mine = (objects.area >= low) & (objects.area < high)
        result[f"recall_{name}"] = 100 * float(kept[mine].mean()) if mine.any() else float("nan")
    total = np.bincount(objects.category)
    found = np.bincount(objects.category, weights=kept, minlength=len(total))
    recall = found[total > 0] / total[total > 0]
    result["class_recall"] = 100 * float(recall.mean())
    result["AP"] = 100 * float(((np.floor(recall * 100 + 1e-9) + 1) / 101).mean())
    return result


def study(
    objects: Objects, per_category: Sequence[int], num_queries: int = 100, top_k: int = 20
) -> dict[str, dict[str, float]]:
    """Bounds for each number of queries a category, for METR's uniform shares, and for free assignment.

    Raises:
        ValueError: a dataset without objects.
    """
    if not len(objects):
        raise ValueError("the dataset has no objects (crowds do not count)")
    rows = {f"best {n} of a category": bounds(objects, kept_uniform(objects, n)) for n in per_category}
    share = max(1, num_queries // top_k)
    name = f"uniform: {top_k} categories x {share}"
    rows[name] = bounds(objects, kept_uniform(objects, share, top_k))
    rows[f"adaptive: {num_queries} queries"] = bounds(objects, kept_adaptive(objects, num_queries))
    return rows
