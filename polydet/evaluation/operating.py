"""Operating points: for each class the score from which on a detection counts, chosen on validation data."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from polydet.evaluation.collect import DetectionEvaluator, Detections

__all__ = ["OperatingPoint", "OperatingPointEvaluator", "choose_point", "match_image"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OperatingPoint:
    """A score, and what is right of the detections from it on: precision and recall, 0 to 1, of `objects` objects."""

    score: float
    precision: float
    recall: float
    objects: int


def match_image(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, crowd: np.ndarray, iou: float) -> np.ndarray:
    """Which detections of one class in one image are right: each object is found once, by the best score (COCO's rule).

    Args:
        boxes, truth: ``[n, 4]``, ``[m, 4]`` xyxy. scores: ``[n]``.
        crowd: ``[m]`` bool; a detection that meets only these counts neither as right nor as wrong.

    Returns:
        int8 ``[n]``: 1 right, 0 wrong, -1 does not count.
    """
    result = np.zeros(len(boxes), np.int8)
    if not len(truth):
        return result
    overlap = box_iou(torch.from_numpy(boxes).float(), torch.from_numpy(truth).float()).numpy()
    free = ~crowd
    for i in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlap[i], 0.0)
        best = int(candidates.argmax())
        if candidates[best] >= iou:
            result[i], free[best] = 1, False
        elif crowd.any() and overlap[i][crowd].max() >= iou:
            result[i] = -1
    return result


def choose_point(scores: np.ndarray, right: np.ndarray, objects: int, precision: float = 0.0) -> OperatingPoint | None:
    """The score of the best F1, or of the most recall among those of at least ``precision``.

    Args:
        scores: ``[n]`` of the detections of a class. right: ``[n]`` bool. objects: of the class in the data.

    Returns:
        None where no score does.
    """
    if not objects or not len(scores):
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(right[order])
    kept = np.arange(1, len(ranked) + 1)
    p, r = hits / kept, hits / objects
    usable = np.append(ranked[1:] < ranked[:-1], True) & (p >= precision) & (hits > 0)  # equal scores go together
    if not usable.any():
        return None
    gain = np.where(usable, r if precision else 2 * hits / (kept + objects), -1.0)
    best = int(gain.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return OperatingPoint(float((ranked[best] + below) / 2), float(p[best]), float(r[best]), objects)


class OperatingPointEvaluator(DetectionEvaluator):
    """Chooses an operating point for each class of a card.

    Args:
        dataset_name: card name; validation data, which neither training nor the test has seen.
        iou: from which on a box has found an object.
        precision: least precision, see :func:`choose_point`; 0 for the best F1.

    Attributes:
        points: class name -> point, after ``evaluate`` on the main process; classes without objects, or without a
            score that does, are left out.
    """

    def __init__(self, dataset_name: str, iou: float = 0.5, precision: float = 0.0) -> None:
        super().__init__(dataset_name)
        self.iou, self.precision = iou, precision
        self.points: dict[str, OperatingPoint] = {}

    def score(self, detections: Detections) -> dict[str, float]:
        """Mean precision and recall of the classes at their points, 0 to 100."""
        classes = self.card.classes or ()
        scores: list[list[np.ndarray]] = [[] for _ in classes]
        right: list[list[np.ndarray]] = [[] for _ in classes]
        objects = np.zeros(len(classes), int)
        for image in range(len(self.table)):
            record = self.table.record(image)
            known = _judged(record, len(classes))
            found = detections.take(detections.image == image)
            truth = [(a["category_id"], a["bbox"], bool(a["iscrowd"])) for a in record["annotations"]]
            for label in {*found.label.tolist(), *(label for label, _, _ in truth)} & known:
                boxes = np.array([box for k, box, _ in truth if k == label], np.float32).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                crowd = np.array([c for k, _, c in truth if k == label], bool)
                mine = found.take(found.label == label)
                match = match_image(mine.box, mine.score, boxes, crowd, self.iou)
                objects[label] += int((~crowd).sum())
                scores[label].append(mine.score[match >= 0])
                right[label].append(match[match >= 0] == 1)
        for label, name in enumerate(classes):
            if scores[label]:
                flat = np.concatenate(scores[label]), np.concatenate(right[label])
                point = choose_point(*flat, int(objects[label]), self.precision)
                if point is not None:
                    self.points[name] = point
        missing = [name for name in classes if name not in self.points]
        if missing:
            logger.warning("%s: no operating point for %s", self.card.name, ", ".join(missing[:8]))
        chosen = list(self.points.values())
        means = {key: [getattr(p, key) for p in chosen] for key in ("precision", "recall") if chosen}
        return {**{key: float(np.mean(v) * 100) for key, v in means.items()}, "classes": float(len(chosen))}


def _judged(record: dict, classes: int) -> set[int]:
    """Classes whose presence and absence is known for an image: on federated cards those that were verified."""
    if "neg_category_ids" not in record:
        return set(range(classes))
    present = {a["category_id"] for a in record["annotations"]}
    return present | set(record.get("pos_category_ids", ())) | set(record["neg_category_ids"])
