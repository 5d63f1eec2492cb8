"""Readers: one function per file format, from a card's file to columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polydet.data.card import DatasetCard
from polydet.data.columns import AnnotationTable
from polydet.data.readers.coco import read_coco, read_grounding, read_lvis, read_openimages_json
from polydet.data.readers.openimages import read_openimages
from polydet.data.readers.pairs import read_caption_csv, read_class_folders, read_shard
from polydet.data.readers.voc import read_voc
from polydet.data.readers.wider import read_wider_face, read_wider_pedestrian

__all__ = ["READERS", "Reader"]

Reader = Callable[[DatasetCard, Path, Path], tuple[AnnotationTable, DatasetCard]]

READERS: dict[str, Reader] = {
    "coco": read_coco,
    "lvis": read_lvis,
    "openimages": read_openimages,
    "openimages_json": read_openimages_json,
    "voc": read_voc,
    "wider_face": read_wider_face,
    "wider_pedestrian": read_wider_pedestrian,
    "grounding": read_grounding,
    "caption_csv": read_caption_csv,
    "webdataset": read_shard,
    "class_folders": read_class_folders,
}
