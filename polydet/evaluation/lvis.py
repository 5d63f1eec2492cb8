"""LVIS AP and Fixed AP, class by class, in bounded memory."""

from __future__ import annotations

import logging
import types
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lvis.eval
import numpy as np
import pycocotools.mask as mask_utils
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from polydet.data.columns import AnnotationTable
from polydet.data.readers.json_file import load_json
from polydet.evaluation.collect import DetectionEvaluator, Detections
from polydet.evaluation.limits import beyond_limit

__all__ = ["CardLVISEvaluator", "FixedAPEvaluator", "match_lvis"]

logger = logging.getLogger(__name__)

IOU = np.linspace(0.5, 0.95, 10)
RECALL = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


class FixedAPEvaluator(DetectionEvaluator):
    """LVIS box AP without a limit per image: the 10,000 best boxes of each class of the whole set count.

    (Dave et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details"; GLIP and DetCLIP report
    it.) Equals the lvis package's AP with `max_dets=-1` on those boxes. Results: AP, AP50, AP75, APs, APm, APl, APr,
    APc, APf and `AP-<class>`.
    """

    max_per_image: int | None = None

    def __init__(self, dataset_name: str, output_dir: str | None = None, max_per_class: int | None = 10_000):
        super().__init__(dataset_name, output_dir, max_per_class)

    @cached_property
    def _truth(self) -> _Truth:
        """Read where it is needed: by the process that scores."""
        return _Truth(self.card.json_files, self.table)

    def score(self, detections: Detections) -> dict[str, float]:
        """LVIS metrics of all detections."""
        if self.max_per_image is not None:
            detections = _limit_per_image(detections, self.max_per_image)
        classes = len(self.card.classes or ())
        detections = detections.take(np.lexsort((np.arange(len(detections)), detections.image, detections.label)))
        bounds = np.searchsorted(detections.label, np.arange(classes + 1))
        precision = np.full((len(IOU), len(RECALL), classes, len(AREAS)), -1.0)
        for k in range(classes):
            found = detections.take(np.arange(bounds[k], bounds[k + 1]))
            precision[:, :, k] = self._truth.precision_of(k, found)
        results = _summary(precision, self._truth.frequency)
        logger.info("LVIS results of %s (boxes)\n%s", self.card.name, create_small_table(results))
        per_class = {f"AP-{name}": _mean(precision[:, :, k, 0]) for k, name in enumerate(self.card.classes or ())}
        return {**results, **per_class}


class CardLVISEvaluator(FixedAPEvaluator):
    """Official LVIS AP: at most `max_dets` detections per image, by default 300.

    Boxes are scored here; masks, where predicted, by the lvis package. Equals that package on the same detections; it
    keeps arrays instead of one dict per image and class, so it needs a few hundred MiB where the package needs tens of
    GiB.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, max_dets: int | None = None):
        self.limit = self.max_per_image = max_dets or 300
        self._masks: LVISEvaluator | None = None
        self._output_dir = output_dir
        super().__init__(dataset_name, output_dir, max_per_class=None)

    def reset(self) -> None:
        """Forget everything collected."""
        super().reset()
        if self._masks is not None:
            self._masks.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take a batch."""
        super().process(inputs, outputs)
        if self._parts:  # what an image has beyond its 300 best never counts
            self._parts[-1] = _limit_per_image(self._parts[-1], self.limit)
        if any(output["instances"].has("pred_masks") for output in outputs):
            self._mask_evaluator().process(inputs, outputs)

    def _mask_evaluator(self) -> LVISEvaluator:
        if self._masks is None:
            self._masks = LVISEvaluator(
                self.card.name, ("segm",), True, self._output_dir, max_dets_per_image=self.limit
            )
            self._masks.reset()
        return self._masks

    def score(self, detections: Detections) -> dict[str, float]:
        """LVIS metrics, and how many objects are beyond what counts of an image."""
        return {**super().score(detections), **beyond_limit(self.table, self.limit, per_class=False)}

    def evaluate(self) -> dict[str, Any]:
        """`bbox`, and `segm` if masks were predicted."""
        results = super().evaluate()
        if any(comm.all_gather(self._masks is not None)):
            masks = self._mask_evaluator()  # also where this process saw no image with masks
            if not hasattr(lvis.eval.np, "float"):  # lvis 0.5.3 uses a name that numpy removed
                lvis.eval.np = types.SimpleNamespace(**{**vars(np), "float": float})
            results.update(masks.evaluate() or {})
        return results


class _Truth:
    """Ground truth of a card's LVIS files by class: boxes, areas and who may be scored where.

    Images that the card leaves out are left out; boxes that are not finite count neither for nor against.
    """

    def __init__(self, paths: Sequence[Path], table: AnnotationTable):
        documents = [load_json(path) for path in paths]
        image_of = {table.image_id(i): i for i in range(len(table))}
        label_of = MetadataCatalog.get(table.name).thing_dataset_id_to_contiguous_id
        items = [item for document in documents for item in document["annotations"] if item["image_id"] in image_of]
        images = [image for document in documents for image in document["images"] if image["id"] in image_of]
        label = np.array([label_of[item["category_id"]] for item in items], np.int64)
        image = np.array([image_of[item["image_id"]] for item in items], np.int64)
        order = np.lexsort((np.arange(len(items)), image, label))
        self.image, self.label = image[order], label[order]
        self.box = np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4)[order]
        self.area = np.array([item.get("area", item["bbox"][2] * item["bbox"][3]) for item in items])[order]
        broken = ~np.isfinite(self.box).all(axis=1)
        self.box[broken] = 0
        self.ignore = broken | np.array([bool(item.get("ignore", 0)) for item in items], bool)[order]
        self.starts = np.searchsorted(self.label, np.arange(len(label_of) + 1))
        self.negative = _pairs(images, "neg_category_ids", image_of, label_of)
        self.partial = _pairs(images, "not_exhaustive_category_ids", image_of, label_of)
        self.frequency = [""] * len(label_of)
        for category in (category for document in documents for category in document["categories"]):
            self.frequency[label_of[category["id"]]] = category.get("frequency", "f")

    def precision_of(self, k: int, found: Detections) -> np.ndarray:
        """Precision at 101 recalls of class k, [10, 101, 4] (IoU, recall, area); -1 without ground truth.

        `found` are the detections of the class, sorted by image.
        """
        mine = slice(self.starts[k], self.starts[k + 1])
        image, box, area, ignore = self.image[mine], self.box[mine], self.area[mine], self.ignore[mine]
        allowed = np.isin(found.image, np.union1d(image, self.negative.get(k, ())))
        found = found.take(allowed)
        out = np.stack([ignore | (area < low) | (area > high) for low, high in AREAS.values()])
        boxes = found.box.copy()
        boxes[:, 2:] -= boxes[:, :2]
        boxes = boxes.astype(np.float64)  # xywh, with the rounding of float32 as results files have it
        size = boxes[:, 2] * boxes[:, 3]
        beyond = np.stack([(size < low) | (size > high) for low, high in AREAS.values()])
        matched = np.zeros((len(AREAS), len(IOU), len(found)), bool)
        ignored = np.zeros_like(matched)
        for there in np.unique(found.image[np.isin(found.image, image)]):
            rows = np.arange(*np.searchsorted(found.image, (there, there + 1)))
            rows = rows[np.argsort(-found.score[rows], kind="stable")]
            gt = slice(*np.searchsorted(image, (there, there + 1)))
            iou = np.asarray(mask_utils.iou(boxes[rows], box[gt], [0] * (gt.stop - gt.start)))
            matched[:, :, rows], ignored[:, :, rows] = match_lvis(iou, out[:, gt])
        unseen = beyond | np.isin(found.image, self.partial.get(k, ()))[None]
        ignored |= ~matched & unseen[:, None]
        order = _score_order(found)
        return _precision(matched[:, :, order], ignored[:, :, order], (~out).sum(axis=1))


def _score_order(found: Detections) -> np.ndarray:
    """By falling score; ties by image, then by position."""
    return np.lexsort((np.arange(len(found)), found.image, -found.score))


def _pairs(images: list[dict], key: str, image_of: dict, label_of: dict) -> dict[int, np.ndarray]:
    """Class -> image indices that list it under `key`."""
    result: dict[int, list[int]] = {}
    for image in images:
        for id_ in image.get(key, ()):
            result.setdefault(label_of[id_], []).append(image_of[image["id"]])
    return {k: np.array(found) for k, found in result.items()}


def match_lvis(iou: np.ndarray, ignore: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The COCO and LVIS matching of one image and class for all IoU thresholds and area ranges at once.

    In the order of scores each detection takes the free box of highest IoU (the later one on ties) at or above the
    threshold, a counted box before an ignored one.

    Args:
        iou: [n, m], detections by falling score.
        ignore: boxes that do not count in each area range, bool [A, m].

    Returns:
        matched, ignored: bool [A, 10, n].
    """
    n, m = iou.shape
    areas = len(ignore)
    matched = np.zeros((areas, len(IOU), n), bool)
    ignored = np.zeros_like(matched)
    free = np.ones((areas, len(IOU), m), bool)
    threshold = np.minimum(IOU, 1 - 1e-10)
    count = np.broadcast_to(~ignore[:, None], free.shape)
    a, t = np.indices((areas, len(IOU)), sparse=True)
    for d in np.flatnonzero(iou.max(axis=1, initial=0) >= threshold[0]):
        open_ = free & (iou[d] >= threshold[:, None])
        if not open_.any():
            continue
        value = np.where(open_, iou[d] + 2.0 * count, -1.0)[..., ::-1]
        best = m - 1 - value.argmax(axis=2)
        hit = open_[a, t, best]
        matched[:, :, d] = hit
        ignored[:, :, d] = hit & ~count[a, t, best]
        free[a, t, best] &= ~hit
    return matched, ignored


def _precision(matched: np.ndarray, ignored: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """[A, T, n] in the order of scores -> [T, R, A]."""
    result = np.full((len(IOU), len(RECALL), len(positives)), -1.0)
    true = np.cumsum(matched & ~ignored, axis=2, dtype=np.float64)
    false = np.cumsum(~matched & ~ignored, axis=2, dtype=np.float64)
    for area, total in enumerate(positives):
        if not total:
            continue
        for t in range(len(IOU)):
            tp, fp = true[area, t], false[area, t]
            precision = np.maximum.accumulate((tp / (fp + tp + np.spacing(1)))[::-1])[::-1]
            place = np.searchsorted(tp / total, RECALL, side="left")
            reached = place < len(tp)
            result[t, :, area] = 0.0
            result[t, reached, area] = precision[place[reached]]
    return result


def _mean(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")


def _summary(precision: np.ndarray, frequency: list[str]) -> dict[str, float]:
    groups = {g: [k for k, f in enumerate(frequency) if f == g] for g in "rcf"}
    results = {"AP": _mean(precision[..., 0]), "AP50": _mean(precision[0, ..., 0]), "AP75": _mean(precision[5, ..., 0])}
    results |= {f"AP{name}": _mean(precision[..., i]) for i, name in enumerate(AREAS) if name}
    return results | {f"AP{g}": _mean(precision[:, :, members, 0]) for g, members in groups.items()}


def _limit_per_image(detections: Detections, limit: int) -> Detections:
    """The `limit` best detections of every image; images with fewer keep their order."""
    order = np.lexsort((np.arange(len(detections)), -detections.score, detections.image))
    image = detections.image[order]
    first = np.searchsorted(image, image, side="left")
    keep = np.zeros(len(order), bool)
    keep[order[np.arange(len(order)) - first < limit]] = True
    return detections.take(keep) if not keep.all() else detections
