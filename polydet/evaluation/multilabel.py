"""Which classes are in the image: multi-label mean average precision."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from sklearn.metrics import average_precision_score

from polydet.data import get_card, load_card

__all__ = ["MultiLabelEvaluator"]

logger = logging.getLogger(__name__)


class MultiLabelEvaluator(DatasetEvaluator):
    """mAP of per-image class scores (METR, supplementary table 1; Query2Label's and ASL's metric).

    The model's output of an image has `class_scores`, [K] in the card's class order. A class is present if it is
    annotated (crowds do not count). On federated cards a class is scored on the images where it is verified. Results:
    `{"classification": {"mAP": 0..100, "AP-<class>": ...}}`; classes that never occur are left out of the mean. Of a
    model without `class_scores` (METR without category extraction) there are none, which is logged as an error: the
    boxes of a long run are still to be evaluated.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        del output_dir  # nothing is saved
        self.table, self.card = load_card(dataset_name), get_card(dataset_name)
        self._index = {self.table.image_id(i): i for i in range(len(self.table))}
        self.reset()

    def reset(self) -> None:
        """Forget everything collected."""
        self._scores: dict[int, np.ndarray] = {}
        self._without: Any = None

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take a batch."""
        for record, output in zip(inputs, outputs):
            if "class_scores" not in output:
                self._without = record["image_id"]
                continue
            scores = output["class_scores"].detach().float().cpu().numpy()
            if scores.shape != (len(self.card.classes or ()),):
                raise ValueError(f"class_scores is {scores.shape}, {self.card.name} has {len(self.card.classes or ())}")
            self._scores[self._index[record["image_id"]]] = scores

    def evaluate(self) -> dict[str, Any]:
        """Results on the main process, `{}` on the others."""
        if self._without is not None:
            logger.error(
                "the model gives no class_scores (image %s), so %s gets no classification mAP: it needs a category "
                "extraction module, or dataloader.evaluators without 'multilabel'",
                self._without,
                self.card.name,
            )
            self._scores = {}
        gathered = comm.gather(self._scores, dst=0)
        if not comm.is_main_process():
            return {}
        merged = {image: scores for part in gathered for image, scores in part.items()}
        if not merged:
            return {}
        images = sorted(merged)
        scores = np.stack([merged[i] for i in images])
        present, judged = self._labels()
        names = self.card.classes or ()
        results = {}
        for k, name in enumerate(names):
            rows = [r for r, i in enumerate(images) if judged is None or judged[i, k]]
            truth = present[[images[r] for r in rows], k]
            if truth.any():
                results[f"AP-{name}"] = 100 * float(average_precision_score(truth, scores[rows, k]))
        mean = float(np.mean(list(results.values()))) if results else float("nan")
        return OrderedDict(classification={"mAP": mean, **results})

    def _labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Present and judged, bool [n, K]; judged is None where everything is."""
        shape = (len(self.table), len(self.card.classes or ()))
        present = np.zeros(shape, bool)
        counted = self.table.flags & 1 == 0
        present[self.table.image_of_annotation()[counted], self.table.labels[counted]] = True
        if not self.table.verified:
            return present, None
        judged = present.copy()
        for key in ("pos_category_ids", "neg_category_ids"):
            lists = self.table.verified[key]
            image = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
            judged[image, lists.values] = True
            if key == "pos_category_ids":
                present[image, lists.values] = True
        return present, judged
