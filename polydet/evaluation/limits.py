"""How many detections of an image count, how many a model gives, and which objects are beyond both."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from polydet.data import load_card
from polydet.data.columns import CROWD, AnnotationTable

__all__ = ["AnswersPerImage", "beyond_limit"]

logger = logging.getLogger(__name__)


def beyond_limit(table: AnnotationTable, limit: int, per_class: bool) -> dict[str, float]:
    """Objects of a dataset that no detector can find because only `limit` detections of an image count; logged.

    Args:
        table: the dataset; its crowds are no objects.
        limit: detections that count, of an image or (`per_class`, as pycocotools does it) of a class in an image.

    Returns:
        nothing if there are none, else `max_dets` and `objects_beyond_max_dets`, to stand among the metrics.
    """
    counted = table.flags & CROWD == 0
    image = table.image_of_annotation()[counted]
    group = image * (int(table.labels.max(initial=0)) + 1) + table.labels[counted] if per_class else image
    groups, counts = np.unique(group, return_counts=True)
    beyond = int(np.maximum(counts - limit, 0).sum())
    if not beyond:
        return {}
    fullest = int(image[np.flatnonzero(group == groups[counts.argmax()])[0]])
    what = " of one class" if per_class else ""
    logger.warning(
        "%s: only the %d best detections%s of an image count, but image id %s has %d objects%s: %d of %d objects "
        "cannot be found and AP stays below 100; set max_dets to %d or more in the card or in dataloader.evaluators",
        table.name, limit, what, table.image_id(fullest), counts.max(), what, beyond, len(image), counts.max(),
    )  # fmt: skip
    return {"max_dets": float(limit), "objects_beyond_max_dets": float(beyond)}


class AnswersPerImage(DatasetEvaluator):
    """Warns where a model's own limit of detections an image is below the objects of an image; gives no result.

    Such a limit shows in the answers: several images have as many as the fullest.

    Args:
        dataset_name: card name.
    """

    def __init__(self, dataset_name: str) -> None:
        table = load_card(dataset_name)
        objects = np.bincount(table.image_of_annotation()[table.flags & CROWD == 0], minlength=len(table))
        self._name = dataset_name
        self._objects = {table.image_id(i): int(n) for i, n in enumerate(objects)}
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        self._answers: dict[Any, int] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count a batch's detections."""
        self._answers.update({item["image_id"]: len(out["instances"]) for item, out in zip(inputs, outputs)})

    def evaluate(self) -> None:
        """Warn on the main process."""
        answers: dict[Any, int] = {}
        for part in comm.gather(self._answers, dst=0):
            answers.update(part)
        most = max(answers.values(), default=0)
        full = [image for image, count in answers.items() if count == most]
        short = {image: self._objects[image] for image in full if self._objects[image] > most}
        if not short or len(full) < min(2, len(answers)):
            return
        worst = max(short, key=lambda image: short[image])
        logger.warning(
            "%s: the model gives at most %d detections an image, but image id %s has %d objects, and %d images have "
            "more than it gives; raise its detections an image (in configs/finetune they follow from the training "
            "cards)", self._name, most, worst, short[worst], len(short),
        )  # fmt: skip
