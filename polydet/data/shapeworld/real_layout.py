"""ShapeWorld under the names and in the folders of the real datasets, so that the real cards and configs run on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from polydet.data.card import find_card
from polydet.data.shapeworld.documents import coco_document, file_name, lvis_documents
from polydet.data.shapeworld.generate import SEED, scenes_of, write_images, write_json
from polydet.data.shapeworld.names import colour_weights
from polydet.data.shapeworld.openimages import write_openimages
from polydet.data.shapeworld.real_downstream import write_goldg, write_odinw, write_pairs
from polydet.data.shapeworld.voc_wider import write_voc, write_wider_face, write_wider_pedestrian
from polydet.data.shapeworld.world import Scene, Shape

__all__ = ["DATASETS", "REAL_NAMES", "write_real_layout"]

# shape -> a class of the real dataset that looks a little like it
REAL_NAMES: dict[str, dict[str, str]] = {
    "coco": {
        "disc": "sports ball", "ring": "donut", "square": "tv", "bar": "book",
        "triangle": "pizza", "star": "kite", "hexagon": "stop sign", "oval": "orange",
    },
    "lvis": {
        "disc": "beachball", "ring": "doughnut", "square": "crate", "bar": "signboard",
        "triangle": "cone", "star": "starfish", "hexagon": "stop_sign", "oval": "egg",
    },
    "objects365": {
        "disc": "Other Balls", "ring": "Donut", "square": "Storage box", "bar": "Book",
        "triangle": "Traffic cone", "star": "Kite", "hexagon": "Stop Sign", "oval": "Egg",
    },
    "openimages": {
        "disc": "Ball", "ring": "Doughnut", "square": "Box", "bar": "Book",
        "triangle": "Tent", "star": "Starfish", "hexagon": "Stop sign", "oval": "Egg",
    },
    "voc": {
        "disc": "bottle", "ring": "bicycle", "square": "tvmonitor", "bar": "sofa",
        "triangle": "boat", "star": "bird", "hexagon": "chair", "oval": "car",
    },
}  # fmt: skip
DATASETS = (
    "coco", "lvis", "objects365", "openimages", "voc", "wider_face", "wider_pedestrian", "goldg", "cc", "odinw"
)  # fmt: skip
MARKER = "SHAPEWORLD.txt"  # tells that the files are a small copy
_DOWNSTREAM = 8  # pictures a split of each of ODinW's sets, at most


def write_real_layout(
    root: Path, train: int = 200, val: int = 40, seed: int = SEED, datasets: tuple[str, ...] = DATASETS
) -> None:
    """Write the datasets under `root` as if it were DETECTRON2_DATASETS. Each json declares all real categories.

    COCO 2017 and LVIS v1 share their images, as the real ones do.

    Args:
        train, val: images per split.
    """
    counts = {"train": train, "val": val}
    if "coco" in datasets or "lvis" in datasets:
        _coco_and_lvis(root, counts, seed, datasets)
    for name, write in (("objects365", _objects365), ("openimages", _openimages)):
        if name in datasets:
            write(root, counts, seed)
    for name, writer in _OTHERS.items():
        if name in datasets:
            writer(root, {split: _scenes(f"{name}/{split}", n, seed) for split, n in counts.items()})
    for name, text_writer in (("goldg", write_goldg), ("cc", write_pairs)):
        if name in datasets:
            text_writer(root, {"train": _scenes(f"{name}/train", train, seed)}, seed)
    if "odinw" in datasets:
        write_odinw(root, {s: _scenes(f"odinw/{s}", min(n, _DOWNSTREAM), seed) for s, n in counts.items()})
    (root / MARKER).write_text("Generated pictures under the names of real datasets, far fewer than those have.\n")


def _scenes(name: str, count: int, seed: int) -> list[Scene]:
    return scenes_of(f"real/{name}", count, colour_weights(), seed)


def _coco_and_lvis(root: Path, counts: Mapping[str, int], seed: int, datasets: tuple[str, ...]) -> None:
    card = find_card("coco_2017_train")
    scenes = {f"{split}2017": _scenes(f"coco/{split}", n, seed) for split, n in counts.items()}
    first = 1
    for split, split_scenes in scenes.items():
        names = [file_name(i) for i in range(first, first + len(split_scenes))]
        write_images(root / "coco" / split, split_scenes, names)
        document = coco_document(split_scenes, REAL_NAMES["coco"], card.classes or (), _numbers(card.category_ids))
        for image, name in zip(document["images"], names):
            image["file_name"] = name
            image["coco_url"] = f"http://images.cocodataset.org/{split}/{name}"
            image["id"] += first - 1
        for annotation in document["annotations"]:
            annotation["image_id"] += first - 1
        if "coco" in datasets:
            write_json(root / "coco" / "annotations" / f"instances_{split}.json", document)
        first += len(split_scenes)
    if "lvis" in datasets:
        _lvis(root, scenes, seed)


def _lvis(root: Path, scenes: Mapping[str, list[Scene]], seed: int) -> None:
    card = find_card("lvis_v1_train")
    names = REAL_NAMES["lvis"]
    categories = [
        {"id": id_, "name": name, "synset": f"{name}.n.01", "synonyms": [name], "def": ""}
        for id_, name in zip(card.category_ids or (), card.classes or ())
    ]

    def name_of(shape: Shape) -> str:
        return names[shape.kind]

    documents = lvis_documents(
        scenes, np.random.default_rng((seed, 5)), name_of, categories, "http://images.cocodataset.org", "train2017"
    )
    for split, document in documents.items():
        write_json(root / "lvis" / f"lvis_v1_{split.removesuffix('2017')}.json", document)
    minival = {**documents["val2017"], "images": [dict(image) for image in documents["val2017"]["images"]]}
    for image in minival["images"]:  # the published file says where COCO has the image
        image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    write_json(root / "lvis" / "lvis_v1_minival_inserted_image_name.json", minival)


def _objects365(root: Path, counts: Mapping[str, int], seed: int) -> None:
    card = find_card("objects365_v2_train")
    misspelt = {right: wrong for wrong, right in card.spelling.items()}
    classes = [misspelt.get(name, name) for name in card.classes or ()]  # as the real file has them
    for split, count in counts.items():
        scenes = _scenes(f"objects365/{split}", count, seed)
        names = [f"images/v2/patch16/objects365_v2_{i:08d}.jpg" for i in range(count)]
        (root / "objects365" / split / "images/v2/patch16").mkdir(parents=True, exist_ok=True)
        write_images(root / "objects365" / split, scenes, names)
        document = coco_document(scenes, REAL_NAMES["objects365"], classes, _numbers(card.category_ids))
        for image, name in zip(document["images"], names):
            image["file_name"] = name
        for annotation in document["annotations"]:
            del annotation["segmentation"]
            annotation["isfake"] = annotation["isreflected"] = 0
        write_json(root / "objects365" / "annotations" / f"zhiyuan_objv2_{split}.json", document)


def _openimages(root: Path, counts: Mapping[str, int], seed: int) -> None:
    card = find_card("openimages_v6_train")
    mids = dict(zip(card.classes or (), map(str, card.category_ids or ())))
    hierarchy = {"Entity": tuple(card.classes or ())}
    names = REAL_NAMES["openimages"]
    hierarchy = _nest(hierarchy, {"Food": (names["ring"], names["oval"]), "Toy": (names["disc"],)})
    folder = root / "openimages"
    for split, count in (("train", counts["train"]), ("validation", counts["val"])):
        scenes = scenes_of(f"real/openimages/{split}", count, colour_weights(), seed, group_rate=0.25)
        files = write_openimages(
            folder / "annotations",
            split,
            scenes,
            np.random.default_rng((seed, 6)),
            names,
            {**mids, "Entity": "/m/0bl9f"},
            hierarchy,
            "oidv6-train" if split == "train" else split,
        )
        write_images(folder / split, scenes, files)


def _nest(tree: dict[str, tuple[str, ...]], parents: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Move children of the root below their parents."""
    moved = {child for children in parents.values() for child in children}
    return {"Entity": tuple(name for name in tree["Entity"] if name not in moved), **parents}


def _voc(root: Path, scenes: Mapping[str, list[Scene]]) -> None:
    for year in (2007, 2012):
        for split, name in (("trainval", "train"), ("test" if year == 2007 else "val", "val")):
            write_voc(root / f"VOC{year}", split, scenes[name], REAL_NAMES["voc"], f"{year}_{name}_")


def _wider_face(root: Path, scenes: Mapping[str, list[Scene]]) -> None:
    for split, split_scenes in scenes.items():
        write_wider_face(root / "wider_face", split, split_scenes, ("disc", "oval"))


def _wider_pedestrian(root: Path, scenes: Mapping[str, list[Scene]]) -> None:
    for split, split_scenes in scenes.items():
        write_wider_pedestrian(root / "wider_pedestrian", split, split_scenes, ("bar",), ("triangle",))


_OTHERS = {"voc": _voc, "wider_face": _wider_face, "wider_pedestrian": _wider_pedestrian}


def _numbers(ids: tuple | None) -> list[int]:
    return [int(id_) for id_ in ids or ()]
