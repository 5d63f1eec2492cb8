"""Readers: one function per file format, from a card's file to columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polydet.data.card import DatasetCard
from polydet.data.columns import AnnotationTable
from polydet.data.readers.coco import read_coco, read_lvis

__all__ = ["READERS", "Reader", "read_coco", "read_lvis"]

Reader = Callable[[DatasetCard, Path, Path], tuple[AnnotationTable, DatasetCard]]

READERS: dict[str, Reader] = {"coco": read_coco, "lvis": read_lvis}
