"""OpenImages detection metric: AP at IoU 0.5 with the class hierarchy and group-of boxes (challenges 2018 and 2019)."""

from __future__ import annotations

import logging

import numpy as np
from detectron2.utils.logger import create_small_table

from polydet.data import DatasetError
from polydet.data.columns import GROUP_OF, AnnotationTable, Ragged
from polydet.data.hierarchy import ancestor_matrix
from polydet.evaluation.collect import DetectionEvaluator, Detections

__all__ = ["OpenImagesEvaluator", "average_precision", "match_openimages"]

logger = logging.getLogger(__name__)

_THRESHOLD = 0.5
_CHUNK = 1 << 20  # detections expanded at a time: most are not verified in their image and go at once


class OpenImagesEvaluator(DetectionEvaluator):
    """Official OpenImages AP50 of a federated card with a hierarchy.

    Ground-truth boxes and positive image labels are expanded to all ancestors, negative image labels to all
    descendants, as the challenge's own tool does (TensorFlow Object Detection API,
    `oid_hierarchical_labels_expansion`; UniDet and Detic read its output): an image without an animal has no dog,
    whereas one without a dog may well have an animal. ScaleDet says nothing about it. A detection counts only if its
    class is verified in its image. Group-of rules: `match_openimages`.

    Results: `AP50` with the detections as they are, `AP50_expand` with each detection repeated for its ancestors (for
    models trained without parent labels; the papers report this one), `AP50-<class>` of the latter. Raises
    DatasetError for a card without verified labels.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        super().__init__(dataset_name, output_dir)
        if not self.table.verified:
            raise DatasetError(
                f"card {dataset_name!r} ({self.card.format}) has no verified labels, which evaluator openimages needs",
                remedy="set evaluator: coco, or format: openimages or openimages_json",
            )

    def score(self, detections: Detections) -> dict[str, float]:
        """Mean over the classes that have ground truth."""
        above = ancestor_matrix(self.card)
        truth = _expand_truth(self.table, above)
        verified = _verified(self.table, above)
        plain = self._per_class(_counted(detections, np.eye(len(above), dtype=bool), verified), truth)
        expanded = self._per_class(_counted(detections, above, verified), truth)
        results = {"AP50": _mean(plain), "AP50_expand": _mean(expanded)}
        logger.info("OpenImages results of %s\n%s", self.card.name, create_small_table(results))
        names = self.card.classes or ()
        return {**results, **{f"AP50-{names[k]}": 100 * float(ap) for k, ap in enumerate(expanded)}}

    def _per_class(self, known: Detections, truth: dict[str, np.ndarray]) -> np.ndarray:
        """AP of every class from the detections that count, NaN without ground truth: float64 [K]."""
        classes = len(self.card.classes or ())
        known = known.take(np.lexsort((np.arange(len(known)), known.image, known.label)))
        bounds = np.searchsorted(known.label, np.arange(classes + 1))
        starts = np.searchsorted(truth["label"], np.arange(classes + 1))
        result = np.full(classes, np.nan)
        for k in range(classes):
            mine = slice(starts[k], starts[k + 1])
            if starts[k] < starts[k + 1]:
                found = known.take(np.arange(bounds[k], bounds[k + 1]))
                result[k] = _class_ap(found, {name: column[mine] for name, column in truth.items()})
        return result


def _mean(values: np.ndarray) -> float:
    return 100 * float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _expand_truth(table: AnnotationTable, above: np.ndarray) -> dict[str, np.ndarray]:
    """Ground truth repeated for every ancestor, sorted by class then image."""
    image = table.image_of_annotation()
    labels = table.labels
    rows, expanded = _spread(labels, above)
    order = np.lexsort((rows, image[rows], expanded))
    rows = rows[order]
    boxes = table.boxes[rows].astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    group = (table.flags[rows] & GROUP_OF) > 0
    return {"label": expanded[order], "image": image[rows], "box": boxes, "group": group}


def _spread(labels: np.ndarray, related: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.nonzero(related[labels])`, without the [n, K] array: at 12 million detections that is 7 GiB."""
    lists = Ragged.of([np.flatnonzero(row).tolist() for row in related]).take(labels)
    return np.repeat(np.arange(len(labels)), np.diff(lists.offsets)), lists.values


def _counted(detections: Detections, related: np.ndarray, verified: np.ndarray) -> Detections:
    """Detections repeated for the classes related to theirs, those only that are verified in their image."""
    parts = []
    for start in range(0, len(detections) if len(verified) else 0, _CHUNK):
        part = detections.take(np.arange(start, min(start + _CHUNK, len(detections))))
        rows, labels = _spread(part.label, related)
        keys = part.image[rows] * np.int64(len(related)) + labels
        keep = verified[np.minimum(np.searchsorted(verified, keys), len(verified) - 1)] == keys
        found = part.take(rows[keep])
        found.label = labels[keep]
        parts.append(found)
    return Detections.join(parts)


def _verified(table: AnnotationTable, above: np.ndarray) -> np.ndarray:
    """Sorted keys image * K + class of all verified labels: positives upwards, negatives downwards, int64."""
    keys = []
    below = above.T
    for name, matrix in (("pos_category_ids", above), ("neg_category_ids", below)):
        lists = table.verified[name]
        image = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
        rows, labels = _spread(lists.values, matrix)
        keys.append(image[rows] * np.int64(len(above)) + labels)
    boxed, labels = _spread(table.labels, above)
    keys.append(table.image_of_annotation()[boxed] * np.int64(len(above)) + labels)
    return np.unique(np.concatenate(keys))


def _class_ap(found: Detections, truth: dict[str, np.ndarray]) -> float:
    """AP of one class; both sides sorted by image."""
    scores, hits = [], []
    begin = np.searchsorted(truth["image"], found.image, side="left")
    end = np.searchsorted(truth["image"], found.image, side="right")
    alone = begin == end  # images where the class is verified absent
    scores.append(found.score[alone].astype(np.float64))
    hits.append(np.zeros(int(alone.sum()), bool))
    for image in np.unique(found.image[~alone]):
        mine = slice(*np.searchsorted(found.image, (image, image + 1)))
        boxes, score = found.box[mine], found.score[mine]
        there = slice(*np.searchsorted(truth["image"], (image, image + 1)))
        got = match_openimages(boxes, score, truth["box"][there], truth["group"][there])
        scores.append(got[0])
        hits.append(got[1])
    score, hit = np.concatenate(scores), np.concatenate(hits)
    order = np.argsort(-score, kind="stable")
    return average_precision(hit[order], len(truth["image"]))


def match_openimages(
    boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Detections of one class in one image against its ground truth.

    In the order of scores a detection looks at the single box it overlaps most: IoU >= 0.5 and not yet taken is a true
    positive, otherwise it is false. A false one that lies to at least half (intersection over its own area) in a
    group-of box leaves the list; each group-of box that was met gives one true positive with the highest score of
    those detections.

    Args:
        boxes, truth: xyxy [n, 4], [m, 4].
        group: which of `truth` are group-of, bool [m].

    Returns:
        scores float64 and hits bool of what is left.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order].astype(np.float64), scores[order].astype(np.float64)
    inside = _intersection(boxes, truth)
    area = _area(boxes)
    iou = inside[:, ~group] / (area[:, None] + _area(truth[~group])[None] - inside[:, ~group])
    hit = np.zeros(len(boxes), bool)
    if iou.shape[1]:
        best = iou.argmax(axis=1)
        near = iou[np.arange(len(boxes)), best] >= _THRESHOLD
        first = np.unique(best[near], return_index=True)[1]  # the highest-scored detection of each box
        hit[np.flatnonzero(near)[first]] = True
    ioa = inside[:, group] / area[:, None]
    if not ioa.shape[1]:
        return scores, hit
    best = ioa.argmax(axis=1)
    absorbed = ~hit & (ioa[np.arange(len(boxes)), best] >= _THRESHOLD)
    top = np.zeros(ioa.shape[1])
    np.maximum.at(top, best[absorbed], scores[absorbed])
    met = top[top > 0]
    return np.concatenate([scores[~absorbed], met]), np.concatenate([hit[~absorbed], np.ones(len(met), bool)])


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def average_precision(hit: np.ndarray, positives: int) -> float:
    """Area under the interpolated precision-recall curve (Pascal VOC 2010).

    Args:
        hit: true positives in the order of scores, bool [n].
        positives: number of ground-truth boxes.
    """
    true = np.cumsum(hit)
    precision = true / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[hit].sum() / positives)
