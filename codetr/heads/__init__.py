"""One-to-many heads by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from polydet.dense import ATSSHead, DenseHead
from polydet.dense.postprocess import DenseInference

from .base import AuxiliaryHead, Coordinates, DenseAuxiliaryHead
from .fcos import FCOSHead, fcos_assign
from .gfl import GFLHead
from .paa import PAAHead, paa_assign
from .rcnn import RCNNHead
from .retinanet import RetinaNetHead, iou_assign

ALL_PAIRS = DenseInference(score_threshold=0.0)  # table 11: no threshold, NMS 0.6, 100 an image


def _dense(head: Callable[..., DenseHead], *args: Any, **kwargs: Any) -> AuxiliaryHead:
    return DenseAuxiliaryHead(head(*args, **{"num_convs": 1, "inference": ALL_PAIRS, **kwargs}))


HEADS: dict[str, Callable[..., AuxiliaryHead]] = {
    "atss": partial(_dense, ATSSHead),
    "faster_rcnn": RCNNHead,
    "fcos": partial(_dense, FCOSHead),
    "gfl": partial(_dense, GFLHead),
    "mask_rcnn": partial(RCNNHead, with_mask=True),
    "paa": partial(_dense, PAAHead),
    "retinanet": partial(_dense, RetinaNetHead),
}


def build_head(name: str, in_channels: int, num_classes: int, strides: Sequence[int], **kwargs: Any) -> AuxiliaryHead:
    """Build an auxiliary head with the settings of table 1 and its supplement.

    Args:
        name: a key of `HEADS`.
        in_channels: channels of every pyramid level.
        strides: of the pyramid, pixels, fine to coarse.
        kwargs: what differs from the head's defaults.

    Raises:
        ValueError: unknown name.
    """
    if name not in HEADS:
        raise ValueError(f"unknown auxiliary head {name!r}; there are {', '.join(sorted(HEADS))}")
    return HEADS[name](in_channels, num_classes, strides, **kwargs)


__all__ = [
    "HEADS",
    "ATSSHead",
    "AuxiliaryHead",
    "Coordinates",
    "DenseAuxiliaryHead",
    "FCOSHead",
    "GFLHead",
    "PAAHead",
    "RCNNHead",
    "RetinaNetHead",
    "build_head",
    "fcos_assign",
    "iou_assign",
    "paa_assign",
]
