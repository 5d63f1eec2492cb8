"""Cards of ShapeWorld; the data is written on first use under DETECTRON2_DATASETS/shapeworld/."""

from __future__ import annotations

from dataclasses import replace

from polydet.data.card import DatasetCard, register_card, register_generator
from polydet.data.shapeworld.names import COARSE, FINE_CLASSES, NOVEL, OID_CLASSES, OID_IDS, WILD

_FOLDER = "shapeworld/v1"
_COMMON = {
    "generator": "shapeworld",
    "about": "generated shapes on textured backgrounds",
    "licence": "Apache-2.0",
}


def _write(card: DatasetCard) -> None:
    from polydet.data.shapeworld.generate import ensure  # OpenCV and all, for who needs the data

    ensure(card)


register_generator("shapeworld", _write)


def _coco_like(part: str, split: str, classes: tuple[str, ...]) -> DatasetCard:
    return DatasetCard(
        name=f"shapes_{part}_{split}",
        json_file=f"{_FOLDER}/{part}/instances_{split}.json",
        image_root=f"{_FOLDER}/{part}/{split}",
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        options={"part": part},
        **_COMMON,  # type: ignore[arg-type]
    )


_WILD = _coco_like("wild", "val", tuple(WILD.values()))
for _split in ("train", "val"):
    register_card(_coco_like("coco", _split, tuple(COARSE.values())))
    register_card(
        DatasetCard(
            name=f"shapes_lvis_{_split}",
            json_file=f"{_FOLDER}/lvis/lvis_{_split}.json",
            image_root=f"{_FOLDER}/lvis",
            format="lvis",
            classes=FINE_CLASSES,
            category_ids=tuple(range(1, len(FINE_CLASSES) + 1)),
            label_policy="federated",
            evaluator="lvis",
            options={"part": "lvis"},
            **_COMMON,  # type: ignore[arg-type]
        )
    )
register_card(_WILD)
register_card(  # the same pictures under wrong names: what an open-vocabulary model reaches without reading them
    replace(
        _WILD,
        name="shapes_wild_shuffled_val",
        category_ids=None,
        spelling=dict(zip(WILD.values(), [*WILD.values()][3:] + [*WILD.values()][:3])),
        about="shapes_wild with the class names moved on by three",
    )
)
register_card(_coco_like("novel", "val", tuple(NOVEL.values())))
register_card(
    DatasetCard(
        name="shapes_phrases_train",
        json_file=f"{_FOLDER}/phrases/phrases_train.json",
        image_root=f"{_FOLDER}/phrases/train",
        format="grounding",
        classes=("object",),
        category_ids=(1,),
        options={"part": "phrases"},
        **_COMMON,  # type: ignore[arg-type]
    )
)
_PAIRS = {"classes": ("object",), "options": {"part": "captions"}, "evaluator": "none", **_COMMON}
register_card(
    DatasetCard(
        name="shapes_captions_train",
        json_file=f"{_FOLDER}/captions/captions_train.csv",
        image_root=f"{_FOLDER}/captions/train",
        format="caption_csv",
        **_PAIRS,  # type: ignore[arg-type]
    )
)
register_card(
    DatasetCard(
        name="shapes_captions_shards_train",
        json_file=f"{_FOLDER}/captions/shards/train-*.tar",
        image_root=f"{_FOLDER}/captions/shards",
        format="webdataset",
        **_PAIRS,  # type: ignore[arg-type]
    )
)
for _split in ("train", "validation"):
    register_card(
        DatasetCard(
            name=f"shapes_oid_{'val' if _split == 'validation' else _split}",
            json_file=f"{_FOLDER}/oid/{_split}-annotations-bbox.csv",
            image_root=f"{_FOLDER}/oid/{_split}",
            format="openimages",
            classes=OID_CLASSES,
            category_ids=tuple(OID_IDS[name] for name in OID_CLASSES),
            label_policy="federated",
            evaluator="openimages",
            files={"labels": f"{_FOLDER}/oid/{_split}-annotations-human-imagelabels-boxable.csv"},
            hierarchy=None if _split == "train" else f"{_FOLDER}/oid/bbox_labels_600_hierarchy.json",
            options={"part": "oid"},
            **_COMMON,  # type: ignore[arg-type]
        )
    )
