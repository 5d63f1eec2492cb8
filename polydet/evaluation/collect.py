"""Detections of a whole dataset as flat arrays, gathered over processes, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from polydet.data import get_card, load_card
from polydet.files import whole_file

__all__ = ["Detections", "DetectionEvaluator", "best_per_class"]


@dataclass
class Detections:
    """n detections: index of the image in the card's data, contiguous class, score, box xyxy in pixels."""

    image: np.ndarray  # int32 [n]
    label: np.ndarray  # int32 [n]
    score: np.ndarray  # float32 [n]
    box: np.ndarray  # float32 [n, 4]

    @classmethod
    def empty(cls) -> Detections:
        """No detections."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))

    @classmethod
    def join(cls, parts: list[Detections]) -> Detections:
        """Concatenation."""
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: np.ndarray) -> Detections:
        """Some of the detections, by index or mask."""
        return Detections(self.image[rows], self.label[rows], self.score[rows], self.box[rows])


def best_per_class(detections: Detections, limit: int) -> Detections:
    """The `limit` highest-scored detections of every class, in their original order."""
    order = np.lexsort((-detections.score, detections.label))
    labels = detections.label[order]
    first = np.searchsorted(labels, labels, side="left")
    keep = order[np.arange(len(order)) - first < limit]
    return detections.take(np.sort(keep))


def _in_order(detections: Detections) -> Detections:
    """In the order of the card's images, those of an image as they came."""
    return detections.take(np.argsort(detections.image, kind="stable"))


class DetectionEvaluator(DatasetEvaluator):
    """Base of evaluators that need all detections at once.

    Every process collects arrays; `evaluate` gathers them on the main process and calls `score`, which subclasses
    define. With `max_per_class` only that many best detections of each class are ever kept (at most
    `classes * max_per_class + buffer` rows of 28 bytes per process).

    Args:
        dataset_name: card name.
        output_dir: where the detections are saved as `detections.npz`; None: nowhere.
        max_per_class: see above; None: all are kept.
        buffer: detections between two prunings.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        max_per_class: int | None = None,
        buffer: int = 2_000_000,
    ):
        self.table, self.card = load_card(dataset_name), get_card(dataset_name)
        self.output_dir, self.max_per_class, self.buffer = output_dir, max_per_class, buffer
        self._index = {self.table.image_id(i): i for i in range(len(self.table))}
        self.reset()

    def reset(self) -> None:
        """Forget everything collected."""
        self._parts: list[Detections] = []
        self._new = 0
        self._seen: set[int] = set()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take a batch; an image that comes twice (padding of a distributed sampler) is counted once."""
        for record, output in zip(inputs, outputs):
            image = self._index[record["image_id"]]
            if image in self._seen:
                continue
            self._seen.add(image)
            instances = output["instances"].to("cpu")
            labels = instances.pred_classes.numpy().astype(np.int32)
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.card.classes or ()):
                raise ValueError(
                    f"class {labels.max()} predicted on {self.card.name}, which has {len(self.card.classes or ())}"
                )
            found = Detections(
                np.full(len(labels), image, np.int32),
                labels,
                instances.scores.float().numpy(),
                instances.pred_boxes.tensor.float().numpy().reshape(-1, 4),
            )
            if len(found):
                self._parts.append(found)
                self._new += len(found)
        if self.max_per_class is not None and self._new > self.buffer:
            self._prune()

    def _prune(self) -> None:
        assert self.max_per_class is not None
        self._parts = [best_per_class(_in_order(Detections.join(self._parts)), self.max_per_class)]
        self._new = 0

    def evaluate(self) -> dict[str, Any]:
        """`{"bbox": {metric: 0..100}}` on the main process, `{}` on the others."""
        if self.max_per_class is not None and self._parts:
            self._prune()
        mine = Detections.join(self._parts)
        gathered = comm.gather((mine, self._seen), dst=0)
        if not comm.is_main_process():
            return {}
        taken: set[int] = set()
        parts = []
        for found, seen in gathered:
            repeated = taken & seen
            parts.append(found.take(~np.isin(found.image, list(repeated))) if repeated else found)
            taken |= seen
        detections = Detections.join(parts)
        detections = _in_order(detections)  # whatever the processes and batches were
        if self.max_per_class is not None:
            detections = best_per_class(detections, self.max_per_class)
        if self.output_dir is not None:
            with whole_file(Path(self.output_dir) / "detections.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **vars(detections))
        return OrderedDict(bbox=self.score(detections))

    def score(self, detections: Detections) -> dict[str, float]:
        """Metrics of the detections of all images."""
        raise TypeError(f"{type(self).__name__} must define score")
