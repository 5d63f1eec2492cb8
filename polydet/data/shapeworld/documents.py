"""Scenes to annotation documents in the real formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polydet.data.shapeworld.names import FINE_CLASSES, SYNONYMS, fine_name
from polydet.data.shapeworld.text import describe
from polydet.data.shapeworld.world import HEIGHT, WIDTH, Scene, Shape

__all__ = ["caption_rows", "coco_document", "file_name", "lvis_documents", "phrase_document"]

INFO = {"description": "ShapeWorld, generated", "version": "1", "year": 2026}


def file_name(image_id: int) -> str:
    """COCO's twelve-digit file name."""
    return f"{image_id:012d}.jpg"


def coco_document(
    scenes: Sequence[Scene],
    name_of: Mapping[str, str] | Callable[[Shape], str],
    classes: Sequence[str],
    category_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """COCO instances json: every shape that has a name, boxes XYWH and polygons; image ids from 1.

    Args:
        name_of: kind -> class name, or a function of the shape.
        category_ids: id of each class (default 1, 2, ...).
    """
    ids = dict(zip(classes, category_ids or range(1, len(classes) + 1)))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, 1):
        images.append(
            {"id": image_id, "file_name": file_name(image_id), "width": WIDTH, "height": HEIGHT, "license": 1}
        )
        for shape in scene.shapes:
            name = name_of(shape) if callable(name_of) else name_of.get(shape.kind)
            if name is not None:
                annotations.append(_annotation(len(annotations) + 1, image_id, ids[name], shape))
    categories = [{"id": ids[name], "name": name, "supercategory": "shape"} for name in classes]
    return {
        "info": INFO,
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _annotation(annotation_id: int, image_id: int, category_id: int, shape: Shape) -> dict[str, Any]:
    x0, y0, x1, y1 = shape.box()
    width, height = round(x1 - x0, 2), round(y1 - y0, 2)
    polygon = shape.polygon()
    xs, ys = np.array(polygon[0::2]), np.array(polygon[1::2])
    area = 0.5 * abs(float(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, width, height],
        "area": round(area, 2),
        "iscrowd": 0,
        "segmentation": [polygon],
    }


def lvis_documents(
    splits: Mapping[str, Sequence[Scene]],
    rng: np.random.Generator,
    name_of: Callable[[Shape], str] = lambda shape: fine_name(shape.kind, shape.colour),
    categories: Sequence[dict] | None = None,
    url: str = "http://images.example.org",
    counted: str = "train",
) -> dict[str, dict[str, Any]]:
    """LVIS v1 json per split: federated annotation of the fine names.

    A class of an image is verified with probability 0.85 (otherwise nobody looked for it and it is not annotated);
    of a verified class with several instances, one in ten images lacks some (`not_exhaustive`); three absent classes
    are verified negatives. `image_count` and `frequency` (r <= 10 < c <= 100 < f images) are those of one split.

    Args:
        splits: scenes of each split; image ids run on over them.
        counted: the split whose images `image_count` and `frequency` count.
        categories: LVIS categories with `id` and `name`; by default the fine names.
    """
    if categories is None:
        categories = [
            {"id": i, "name": name, "synset": f"{name}.n.01", "def": "", "synonyms": SYNONYMS.get(name, [name])}
            for i, name in enumerate(FINE_CLASSES, 1)
        ]
    ids = {category["name"]: category["id"] for category in categories}
    documents: dict[str, dict[str, Any]] = {}
    image_id = annotation_id = 0
    for split, scenes in splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for scene in scenes:
            image_id += 1
            by_name: dict[str, list[Shape]] = {}
            for shape in scene.shapes:
                by_name.setdefault(name_of(shape), []).append(shape)
            absent = [name for name in ids if name not in by_name]
            negative = rng.choice(absent, min(3, len(absent)), replace=False).tolist()
            partial = []
            for name in list(by_name):
                if rng.random() > 0.85:
                    del by_name[name]
                elif len(by_name[name]) > 1 and rng.random() < 0.1:
                    by_name[name] = by_name[name][1:]
                    partial.append(name)
            for name, shapes in by_name.items():
                for shape in shapes:
                    annotation_id += 1
                    annotations.append(_annotation(annotation_id, image_id, ids[name], shape))
            images.append(
                {
                    "id": image_id,
                    "coco_url": f"{url}/{split}/{file_name(image_id)}",
                    "width": WIDTH,
                    "height": HEIGHT,
                    "neg_category_ids": sorted(ids[name] for name in negative),
                    "not_exhaustive_category_ids": sorted(ids[name] for name in partial),
                }
            )
        documents[split] = {"info": INFO, "licenses": [], "images": images, "annotations": annotations}
    full = _with_counts(categories, documents[counted]["annotations"])
    return {split: {**document, "categories": full} for split, document in documents.items()}


def _with_counts(categories: Sequence[dict], annotations: Sequence[dict]) -> list[dict]:
    """Categories with the number of training images and instances, and LVIS's frequency group."""
    images: dict[int, set[int]] = {}
    instances: dict[int, int] = {}
    for annotation in annotations:
        images.setdefault(annotation["category_id"], set()).add(annotation["image_id"])
        instances[annotation["category_id"]] = instances.get(annotation["category_id"], 0) + 1
    result = []
    for category in categories:
        count = len(images.get(category["id"], ()))
        frequency = "r" if count <= 10 else "c" if count <= 100 else "f"
        result.append(
            {
                **category,
                "image_count": count,
                "instance_count": instances.get(category["id"], 0),
                "frequency": frequency,
            }
        )
    return result


def phrase_document(scenes: Sequence[Scene], rng: np.random.Generator) -> dict[str, Any]:
    """Grounding json in MDETR's form: a caption per image, `tokens_positive` character spans per box."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, 1):
        caption, phrases = describe(scene, rng)
        images.append(
            {
                "id": image_id,
                "file_name": file_name(image_id),
                "width": WIDTH,
                "height": HEIGHT,
                "caption": caption,
                "tokens_negative": [[0, len(caption)]],
            }
        )
        for start, end, members in phrases:
            for member in members:
                annotation = _annotation(len(annotations) + 1, image_id, 1, scene.shapes[member])
                del annotation["segmentation"]
                annotations.append({**annotation, "tokens_positive": [[start, end]]})
    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    return {"info": INFO, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def caption_rows(scenes: Sequence[Scene], rng: np.random.Generator) -> list[tuple[str, str]]:
    """(file name, caption) of every image."""
    return [(file_name(i), describe(scene, rng)[0]) for i, scene in enumerate(scenes, 1)]
