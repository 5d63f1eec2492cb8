"""Cards of COCO 2017 and LVIS v1; class names and ids are Detectron2's own."""

from __future__ import annotations

from dataclasses import replace

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from polydet.data.card import DatasetCard, register_card

__all__ = ["COCO", "LVIS"]

_THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]
_LVIS = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])

COCO = DatasetCard(
    name="coco_2017_val",
    json_file="coco/annotations/instances_val2017.json",
    image_root="coco/val2017",
    classes=tuple(category["name"] for category in _THINGS),
    category_ids=tuple(category["id"] for category in _THINGS),
    about="COCO 2017: 118,287 training and 5,000 validation images, 80 classes, exhaustive",
    url="https://cocodataset.org/#download",
    licence="annotations CC BY 4.0; images under Flickr terms",
    images=5_000,
)
LVIS = DatasetCard(
    name="lvis_v1_val",
    json_file="lvis/lvis_v1_val.json",
    image_root="coco",
    format="lvis",
    classes=tuple(category["name"] for category in _LVIS),
    category_ids=tuple(category["id"] for category in _LVIS),
    label_policy="federated",
    evaluator="lvis",
    about="LVIS v1: 100,170 training and 19,809 validation images of COCO, 1,203 classes, federated",
    url="https://www.lvisdataset.org/dataset",
    licence="annotations CC BY 4.0; images as COCO",
    images=19_809,
)

register_card(COCO)
register_card(
    replace(
        COCO,
        name="coco_2017_train",
        images=118_287,
        json_file="coco/annotations/instances_train2017.json",
        image_root="coco/train2017",
    )
)
register_card(
    replace(
        COCO,
        name="coco_2017_train_without_lvis_val",
        images=None,
        json_file="coco/annotations/instances_train2017.json",
        image_root="coco/train2017",
        options={"exclude_images_of": "lvis_v1_val"},
        about="COCO train2017 without the images of LVIS v1 val (about 15,000 of them are LVIS-val images)",
    )
)
register_card(LVIS)
register_card(replace(LVIS, name="lvis_v1_train", json_file="lvis/lvis_v1_train.json", images=100_170))
register_card(
    replace(
        LVIS,
        name="lvis_v1_minival",
        images=4_809,
        json_file="lvis/lvis_v1_minival_inserted_image_name.json",
        about="MDETR's 4,809 images of COCO val2017 that are in LVIS v1 val",
        url="https://github.com/ashkamath/mdetr",
    )
)
