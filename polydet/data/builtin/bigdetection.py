"""The card of OpenImages as BigDetection (Cai et al., CVPR Workshops 2022) cleaned it: METR's pre-training boxes."""

from __future__ import annotations

from polydet.data.builtin.names import read_names
from polydet.data.card import DatasetCard, register_card

__all__: list[str] = []

_ROOT = "BigDetection"
register_card(
    DatasetCard(
        name="bigdetection_openimages_train",
        json_file=f"{_ROOT}/annotations/bigdet_oid_train.json",
        image_root=f"{_ROOT}/train/OpenImages",
        classes=tuple(name for _, name in read_names("bigdetection")),  # the file's ids are matched by name
        about="OpenImages with BigDetection's boxes, 600 classes, exhaustive",
        url="https://github.com/amazon-science/bigdetection",
        licence="annotations on request from BigDetection's authors; images listed as CC BY 2.0",
    )
)
