"""Cards of Objects365 v1 and v2."""

from __future__ import annotations

from dataclasses import replace

from polydet.data.builtin.names import read_names
from polydet.data.card import DatasetCard, register_card

__all__ = ["OBJECTS365_V2_SPELLING"]

# what the v2 annotation file misspells -> the name on the card (ScaleDet's text encoder sees the right word)
OBJECTS365_V2_SPELLING: dict[str, str] = {
    "Moniter/TV": "Monitor/TV",
    "Bakset": "Basket",
    "Dinning Table": "Dining Table",
    "Tea pot": "Teapot",
    "Extention Cord": "Extension Cord",
    "Hotair ballon": "Hot air balloon",
    "Hamimelon": "Hami melon",
    "Mushroon": "Mushroom",
    "Tape Measur/ Ruler": "Tape Measure/ Ruler",
    "Campel": "Camel",
    "Meat ball": "Meatball",
    "Buttefly": "Butterfly",
    "Table Teniis paddle": "Table Tennis paddle",
}

_V2 = read_names("objects365_v2")
_V1 = read_names("objects365_v1")

_CARD = DatasetCard(
    name="objects365_v2_train",
    json_file="objects365/annotations/zhiyuan_objv2_train.json",
    image_root="objects365/train",
    classes=tuple(name for _, name in _V2),
    category_ids=tuple(int(id_) for id_, _ in _V2),
    spelling=OBJECTS365_V2_SPELLING,
    about="Objects365 v2: 1,742,289 training and 80,000 validation images, 365 classes, exhaustive",
    url="https://www.objects365.org/download.html",
    licence="annotations CC BY 4.0; images under Flickr terms",
    images=1_742_289,
)
register_card(_CARD)
register_card(
    replace(
        _CARD,
        name="objects365_v2_val",
        images=80_000,
        json_file="objects365/annotations/zhiyuan_objv2_val.json",
        image_root="objects365/val",
    )
)
for _split in ("train", "val"):
    register_card(
        replace(
            _CARD,
            name=f"objects365_v1_{_split}",
            json_file=f"objects365_v1/annotations/objects365_{_split}.json",
            image_root=f"objects365_v1/{_split}",
            classes=tuple(name for _, name in _V1),
            category_ids=tuple(int(id_) for id_, _ in _V1),
            spelling={},
            images=608_606 if _split == "train" else 30_000,
            about="Objects365 v1: 608,606 training and 30,000 validation images, 365 classes in another order than v2",
        )
    )
