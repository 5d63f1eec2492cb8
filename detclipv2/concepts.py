"""Images to triplets (image, boxes, concepts): one format for detection, grounding and image-text data (section 3.1).

Each class wraps a mapper of `polydet.data` and adds to its output
  `task`: `detection`, `grounding`, `pairs` or `classification`;
  `concepts`: the image's M distinct concepts;
and for data with boxes `instances.gt_concepts`, bool `[G, M]`: box g carries concept m. Boxes that coincide are one
box with several concepts, so that they do not compete for anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from detectron2.structures import Instances

from detclipv2.dictionary import ConceptDictionary
from detclipv2.phrases import NounPhrases, clean_phrase
from polydet.data import DatasetError, label_space_of
from polydet.text import clean_name

Mapper = Callable[[dict[str, Any]], "dict[str, Any] | None"]


class DetectionConcepts:
    """Classes of the image and random others of its dataset.

    Args:
        mapper: gives `instances` with joint labels.
        datasets, merge: those of the loader.
        num_concepts: M; None for all classes of the dataset. An image with more classes keeps them all.
    """

    def __init__(
        self,
        mapper: Mapper,
        datasets: Sequence[str],
        num_concepts: int | None = 150,
        merge: Literal["none", "name"] = "none",
    ) -> None:
        self.mapper, self.datasets, self.merge, self.num_concepts = mapper, list(datasets), merge, num_concepts
        self._space: Any = None

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """A dataset dict with joint labels to a triplet."""
        output = self.mapper(record)
        if output is None:
            return None
        if self._space is None:
            self._space = label_space_of(self.datasets, self.merge)
        instances: Instances = output["instances"]
        carried = [clean_name(self._space.names[label]) for label in instances.gt_classes.tolist()]
        present = list(dict.fromkeys(carried))
        others = [clean_name(name) for name in self._space.names_of(record["dataset_name"])]
        others = sorted(set(others) - set(present))
        if self.num_concepts is not None:
            room = min(max(self.num_concepts - len(present), 0), len(others))
            others = [others[i] for i in np.random.choice(len(others), room, replace=False)]
        return _triplet(output, "detection", present + others, carried)


class GroundingConcepts:
    """Annotated noun phrases and random negatives of a dictionary that the caption does not have.

    Args:
        mapper: gives `instances` and `phrases`, one per instance.
        dictionary: of negatives, or a function that makes it.
        num_concepts: M.
    """

    def __init__(
        self,
        mapper: Mapper,
        dictionary: ConceptDictionary | Callable[[], ConceptDictionary],
        num_concepts: int = 100,
    ) -> None:
        self.mapper, self.dictionary, self.num_concepts = mapper, dictionary, num_concepts

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """A grounding record to a triplet.

        Raises:
            DatasetError: no box of the image has a phrase.
        """
        output = self.mapper(record)
        if output is None:
            return None
        if not isinstance(self.dictionary, ConceptDictionary):
            self.dictionary = self.dictionary()
        carried = [clean_phrase(phrase) for phrase in output.pop("phrases", ())]
        if len(carried) != len(output["instances"]) or not any(carried):
            raise DatasetError(
                f"{len(output['instances'])} boxes with the phrases {carried}: grounding needs a phrase for each",
                file=str(record["file_name"]),
                where=f"image id {record.get('image_id')} of {record.get('dataset_name')}",
                remedy="correct `tokens_positive` of its annotations or remove the image",
            )
        named = [i for i, phrase in enumerate(carried) if phrase]
        output["instances"] = output["instances"][named]
        carried = [carried[i] for i in named]
        present = list(dict.fromkeys(carried))
        room = max(self.num_concepts - len(present), 0)
        negatives = self.dictionary.sample(room, present, record.get("caption", ""))
        return _triplet(output, "grounding", present + negatives, carried)


class CaptionConcepts:
    """The caption, then its noun phrases.

    Args:
        mapper: gives `caption`.
        phrases: noun phrases of a caption, default `NounPhrases()`.
        max_concepts: the caption and its phrases together; later phrases are left out.
        task: `pairs`, or `classification` for images whose caption is a class name (it is then the only concept).
    """

    def __init__(
        self,
        mapper: Mapper,
        phrases: Callable[[str], list[str]] | None = None,
        max_concepts: int = 8,
        task: Literal["pairs", "classification"] = "pairs",
    ) -> None:
        if task not in ("pairs", "classification"):
            raise ValueError(f"task must be pairs or classification, not {task!r}")
        self.mapper, self.phrases = mapper, phrases or NounPhrases()
        self.max_concepts, self.task = max_concepts, task

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """An image-text pair to a triplet without boxes; a caption without nouns is its only concept.

        Raises:
            DatasetError: no caption, or an empty one.
        """
        output = self.mapper(record)
        if output is None:
            return None
        caption = clean_name(output.get("caption") or "")
        if not any(letter.isalnum() for letter in caption):
            raise DatasetError(
                f"the caption {output.get('caption')!r} has no word",
                file=str(record["file_name"]),
                where=f"image id {record.get('image_id')} of {record.get('dataset_name')}",
                remedy="remove the pair",
            )
        nouns = self.phrases(caption) if self.task == "pairs" else []
        output.pop("instances", None)
        output["task"] = self.task
        output["concepts"] = list(dict.fromkeys([caption, *nouns]))[: self.max_concepts]
        return output


def _triplet(output: dict[str, Any], task: str, concepts: list[str], carried: list[str]) -> dict[str, Any]:
    """Merge coinciding boxes and mark the concepts they carry; `carried` is one concept per box."""
    instances: Instances = output["instances"]
    column = {name: i for i, name in enumerate(concepts)}
    first: dict[tuple[float, ...], int] = {}
    of_box = [first.setdefault(tuple(box), len(first)) for box in instances.gt_boxes.tensor.tolist()]
    marks = torch.zeros(len(first), len(concepts), dtype=torch.bool)
    for box, name in zip(of_box, carried):
        marks[box, column[name]] = True
    kept = [of_box.index(box) for box in range(len(first))]
    instances = instances[kept]
    instances.gt_concepts = marks
    output.update(instances=instances, task=task, concepts=concepts)
    return output
