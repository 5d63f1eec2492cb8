"""What the rows of released class heads are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from polydet.data import get_card


@cache
def coco_by_id() -> tuple[str, ...]:
    """COCO's names by category id, 91 rows: id 0 and the ids that COCO never used are empty."""
    names = {c["id"]: c["name"] for c in COCO_CATEGORIES if c["isthing"]}
    return tuple(names.get(i, "") for i in range(max(names) + 1))


def row_names(rows: int) -> Sequence[str] | None:
    """Names of the rows of a released class head that has so many; None for a number that no release has.

    20: Pascal VOC; 80: COCO in the order of its ids; 91: COCO by id; 365 and 1203: Objects365 v2 and LVIS v1 in the
    order of their ids (the order in which mmdetection and Detectron2 read them).
    """
    if rows == 80:
        return tuple(name for name in coco_by_id() if name)
    if rows == 91:
        return coco_by_id()
    if rows == 20:
        return get_card("voc_2007_test").classes
    if rows == 365:
        return get_card("objects365_v2_train").classes
    if rows == 1203:
        return get_card("lvis_v1_val").classes
    return None


def rows_of_zoo(checkpoint: Mapping[str, Any]) -> Sequence[str] | None:
    """COCO's names for a detector of Detectron2's model zoo, whose tensors have the model's own names; else None.

    Its pickles say who made them; LVIS's, Cityscapes' and VOC's have another number of rows than 80 classes and
    background, or 80 classes for each of RetinaNet's nine anchors.
    """
    if not str(checkpoint.get("__author__", "")).startswith("Detectron2"):
        return None
    state = checkpoint["model"]
    rows = {len(state[key]) for key in _ZOO_HEADS if key in state}
    return row_names(80) if rows & {81, 9 * 80} else None


_ZOO_HEADS = ("roi_heads.box_predictor.cls_score.weight", "head.cls_score.weight")
