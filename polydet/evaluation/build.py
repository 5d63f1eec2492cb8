"""Which evaluator scores a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.evaluation import DatasetEvaluator

from polydet.data import DatasetError
from polydet.data.card import find_card
from polydet.evaluation.coco import CardCOCOEvaluator
from polydet.evaluation.lvis import CardLVISEvaluator, FixedAPEvaluator
from polydet.evaluation.multilabel import MultiLabelEvaluator
from polydet.evaluation.openimages import OpenImagesEvaluator

__all__ = ["EVALUATORS", "build_evaluator", "evaluator_of"]

EVALUATORS: dict[str, Callable[..., DatasetEvaluator]] = {
    "coco": CardCOCOEvaluator,
    "lvis": CardLVISEvaluator,
    "lvis_fixed": FixedAPEvaluator,
    "openimages": OpenImagesEvaluator,
    "multilabel": MultiLabelEvaluator,
}
_LIMITED = ("coco", "lvis")  # those whose metric counts only the best detections of an image


def build_evaluator(
    dataset_name: str, output_dir: str | None = None, kind: str | Mapping[str, Any] | None = None
) -> DatasetEvaluator:
    """The evaluator of a card's official metrics (`DatasetCard.evaluator`), or another one.

    It follows Detectron2's interface (`reset`, `process`, `evaluate`), gathers over processes, and gives
    `{"bbox": {metric: 0..100}}` on the main process and an empty or no result on the others.

    Args:
        kind: a key of `EVALUATORS`, or a mapping with `kind` (by default the card's) and `max_dets`, how many
            detections of an image count (by default the card's, else the metric's own).

    Raises:
        DatasetError: see `evaluator_of`.
    """
    name, options = evaluator_of(dataset_name, kind)
    return EVALUATORS[name](dataset_name, output_dir, **options)


def evaluator_of(dataset_name: str, kind: str | Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(key of `EVALUATORS`, its options) of what `build_evaluator` would build; looks at no data.

    Raises:
        DatasetError: no such evaluator or option, or a `max_dets` that is no number or that the metric does not have.
    """
    card = find_card(dataset_name)
    wanted = dict(kind) if isinstance(kind, Mapping) else {"kind": kind}
    name = wanted.pop("kind", None)
    name = card.evaluator if name is None else name
    if not isinstance(name, str) or name not in EVALUATORS:
        raise DatasetError(f"card {dataset_name!r} asks for evaluator {name!r}", remedy=f"one of {sorted(EVALUATORS)}")
    if unknown := sorted(set(wanted) - {"max_dets"}):
        raise DatasetError(
            f"the evaluator {name!r} of card {dataset_name!r} has no setting {unknown[0]!r}",
            remedy="kind and max_dets are what may be set",
        )
    own = card.max_dets if name in _LIMITED else None
    limit = wanted.get("max_dets", own)
    if limit is not None and (type(limit) is not int or limit < 1 or name not in _LIMITED):
        raise DatasetError(
            f"the evaluator {name!r} of card {dataset_name!r} cannot count max_dets={limit!r} detections an image",
            remedy=f"a whole number above 0, for {' and '.join(_LIMITED)}; the others count all",
        )
    return name, {} if limit is None else {"max_dets": limit}
