"""The thirteen sets of ODinW-13 as GLIP splits them (`odinw_<set>_{train,val,test}`); fine-tuning selects on val."""

from __future__ import annotations

from polydet.data.builtin.voc_wider import VOC_CLASSES
from polydet.data.card import DatasetCard, register_card

__all__ = ["ODINW13", "odinw13"]

# card part: folder, classes
ODINW13: dict[str, tuple[str, tuple[str, ...]]] = {
    "AerialMaritimeDrone": ("AerialMaritimeDrone/large", ("boat", "car", "dock", "jetski", "lift")),
    "Aquarium": (
        "Aquarium/Aquarium Combined.v2-raw-1024.coco",
        ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"),
    ),
    "CottontailRabbits": ("CottontailRabbits", ("Cottontail-Rabbit",)),
    "EgoHands": ("EgoHands/generic", ("hand",)),
    "NorthAmericaMushrooms": (
        "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco",
        ("CoW", "chanterelle"),
    ),
    "Packages": ("Packages/Raw", ("package",)),
    "PascalVOC": ("PascalVOC", tuple(VOC_CLASSES)),
    "pistols": ("pistols/export", ("pistol",)),
    "pothole": ("pothole", ("pothole",)),
    "Raccoon": ("Raccoon/Raccoon.v2-raw.coco", ("raccoon",)),
    "ShellfishOpenImages": ("ShellfishOpenImages/raw", ("Crab", "Lobster", "Shrimp")),
    "thermalDogsAndPeople": ("thermalDogsAndPeople", ("dog", "person")),
    "VehiclesOpenImages": ("VehiclesOpenImages/416x416", ("Ambulance", "Bus", "Car", "Motorcycle", "Truck")),
}
_FILE = "annotations_without_background.json"
# evaluated on a part of valid where that is large (GLIP's configs)
_MINI = {
    "EgoHands": "mini_val",
    "VehiclesOpenImages": "mini_val",
}


def odinw13(split: str = "val") -> list[str]:
    """Card names of the thirteen sets for `train`, `val` or `test`."""
    return [f"odinw_{name}_{split}" for name in ODINW13]


def _paths(name: str, folder: str, split: str) -> tuple[str, str]:
    """Annotation file and image folder of a split."""
    root = f"odinw/{folder}"
    if name == "pistols":  # one folder, three files
        return f"{root}/{split}_{_FILE}", root
    place = {"train": "train", "val": _MINI.get(name, "valid"), "test": "test"}[split]
    if name == "PascalVOC" and split == "test":
        place = "valid"  # its test split is its validation split
    return f"{root}/{place}/{_FILE}", f"{root}/{place}"


for _name, (_folder, _classes) in ODINW13.items():
    for _split in ("train", "val", "test"):
        _json, _images = _paths(_name, _folder, _split)
        register_card(
            DatasetCard(
                name=f"odinw_{_name}_{_split}",
                json_file=_json,
                image_root=_images,
                classes=_classes,
                about="ODinW-13 (GLIP): downstream set; category 0 (background) removed",
                url="https://huggingface.co/GLIPModel/GLIP/tree/main/odinw_35",
                licence="as the Roboflow Universe set it comes from",
            )
        )
