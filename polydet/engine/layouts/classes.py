"""What the rows of released class heads are called."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from polydet.data import get_card


@cache
def coco_by_id() -> tuple[str, ...]:
    """COCO's names by category id, 91 rows: id 0 and the ids that COCO never used are empty."""
    names = {c["id"]: c["name"] for c in COCO_CATEGORIES if c["isthing"]}
    return tuple(names.get(i, "") for i in range(max(names) + 1))


def row_names(rows: int) -> Sequence[str] | None:
    """Names of the rows of a released class head that has so many; None for a number that no release has.

    80: COCO in the order of its ids; 91: COCO by id; 365 and 1203: Objects365 v2 and LVIS v1 in the order of their ids
    (the order in which mmdetection and Detectron2 read them).
    """
    if rows == 80:
        return tuple(name for name in coco_by_id() if name)
    if rows == 91:
        return coco_by_id()
    if rows == 365:
        return get_card("objects365_v2_train").classes
    if rows == 1203:
        return get_card("lvis_v1_val").classes
    return None
