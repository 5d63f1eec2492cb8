"""Cards of OpenImages v4, v6 and the challenge of 2019."""

from __future__ import annotations

from dataclasses import replace

from polydet.data.builtin.names import read_names
from polydet.data.card import DatasetCard, register_card

__all__ = ["BOXABLE"]

BOXABLE: dict[str, str] = dict(read_names("openimages"))  # machine id -> name, the 601 boxable classes
_CHALLENGE = [mid for _, mid in read_names("openimages_challenge_2019")]
_ROOT = "openimages"

_IMAGES = {"train": 1_743_042, "val": 41_620, "test": 125_436}

_V6 = DatasetCard(
    name="openimages_v6_train",
    json_file=f"{_ROOT}/annotations/oidv6-train-annotations-bbox.csv",
    image_root=f"{_ROOT}/train",
    format="openimages",
    classes=tuple(BOXABLE.values()),
    category_ids=tuple(BOXABLE),
    label_policy="federated",
    evaluator="openimages",
    files={"labels": f"{_ROOT}/annotations/train-annotations-human-imagelabels-boxable.csv"},
    about="OpenImages v6: 1,743,042 training, 41,620 validation and 125,436 test images, 601 boxable classes",
    url="https://storage.googleapis.com/openimages/web/download_v7.html",
    licence="annotations CC BY 4.0; images listed as CC BY 2.0",
    images=_IMAGES["train"],
)
_HIERARCHY = f"{_ROOT}/annotations/bbox_labels_600_hierarchy.json"
register_card(_V6)
for _split, _name in (("validation", "val"), ("test", "test")):
    register_card(
        replace(
            _V6,
            name=f"openimages_v6_{_name}",
            images=_IMAGES[_name],
            json_file=f"{_ROOT}/annotations/{_split}-annotations-bbox.csv",
            image_root=f"{_ROOT}/{_split}",
            files={"labels": f"{_ROOT}/annotations/{_split}-annotations-human-imagelabels-boxable.csv"},
            hierarchy=_HIERARCHY,
        )
    )
for _split, _name in (("train", "train"), ("validation", "val"), ("test", "test")):
    register_card(
        replace(
            _V6,
            name=f"openimages_v4_{_name}",
            images=_IMAGES[_name],
            json_file=f"{_ROOT}/v4/{_split}-annotations-bbox.csv",
            image_root=f"{_ROOT}/{_split}",
            files={"labels": f"{_ROOT}/v4/{_split}-annotations-human-imagelabels-boxable.csv"},
            hierarchy=None if _split == "train" else f"{_ROOT}/v4/bbox_labels_600_hierarchy.json",
            about="OpenImages v4 (2018_04): 1,743,042 training images, 601 boxable classes",
            url="https://storage.googleapis.com/openimages/web/download_v4.html",
        )
    )

# the challenge: 500 classes; "Bench" and "Mouse" would be names of two classes there, so the names are those of v6
_OID_NAMES = tuple(BOXABLE[mid] for mid in _CHALLENGE)
_OID_HIERARCHY = "oid/annotations/challenge-2019-label500-hierarchy.json"
for _split, _name in (("train", "train"), ("validation", "val")):
    register_card(
        replace(
            _V6,
            name=f"openimages_challenge2019_{_name}",
            images=None,
            json_file=f"oid/annotations/challenge-2019-{_split}-detection-bbox.csv",
            image_root="oid/images" if _split == "train" else "oid/images/validation",
            classes=_OID_NAMES,
            category_ids=tuple(_CHALLENGE),
            files={"labels": f"oid/annotations/challenge-2019-{_split}-detection-human-imagelabels.csv"},
            hierarchy=None if _split == "train" else _OID_HIERARCHY,
            about="OpenImages challenge 2019: 500 classes",
            url="https://storage.googleapis.com/openimages/web/challenge2019.html",
        )
    )
register_card(
    replace(
        _V6,
        name="oid_train",
        images=None,
        json_file="oid/annotations/oid_challenge_2019_train_bbox.json",
        image_root="oid/images",
        format="openimages_json",
        classes=_OID_NAMES,
        category_ids=tuple(range(1, 501)),
        options={"trust_ids": True},  # that json gives two classes the name Bench and two the name Mouse
        files={},
        about="OpenImages challenge 2019 as UniDet and Detic convert it to json (their card name)",
        url="https://github.com/xingyizhou/UniDet/blob/master/docs/DATASETS.md",
    )
)
