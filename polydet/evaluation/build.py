"""Which evaluator scores a card."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.evaluation import DatasetEvaluator

from polydet.data import DatasetError
from polydet.data.card import find_card
from polydet.evaluation.coco import CardCOCOEvaluator
from polydet.evaluation.lvis import CardLVISEvaluator, FixedAPEvaluator
from polydet.evaluation.multilabel import MultiLabelEvaluator
from polydet.evaluation.openimages import OpenImagesEvaluator

__all__ = ["EVALUATORS", "build_evaluator"]

EVALUATORS: dict[str, Callable[[str, str | None], DatasetEvaluator]] = {
    "coco": CardCOCOEvaluator,
    "lvis": CardLVISEvaluator,
    "lvis_fixed": FixedAPEvaluator,
    "openimages": OpenImagesEvaluator,
    "multilabel": MultiLabelEvaluator,
}


def build_evaluator(dataset_name: str, output_dir: str | None = None, kind: str | None = None) -> DatasetEvaluator:
    """The evaluator of a card's official metrics (`DatasetCard.evaluator`), or of another `kind` of `EVALUATORS`.

    It follows Detectron2's interface (`reset`, `process`, `evaluate`), gathers over processes, and gives
    `{"bbox": {metric: 0..100}}` on the main process and an empty or no result on the others.
    """
    kind = find_card(dataset_name).evaluator if kind is None else kind
    if kind not in EVALUATORS:
        raise DatasetError(f"card {dataset_name!r} asks for evaluator {kind!r}", remedy=f"one of {sorted(EVALUATORS)}")
    return EVALUATORS[kind](dataset_name, output_dir)
