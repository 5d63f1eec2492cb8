"""Annotations of a dataset as flat columns.

A Python list of Detectron2 dicts costs about 18 GiB at 3.7 million images and 40 million boxes; the same facts are
0.9 GiB as columns, can be memory-mapped, and are shared by every worker and process. A dict is made when an image is
asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
from detectron2.structures import BoxMode

__all__ = ["AnnotationTable", "CROWD", "GROUP_OF", "Ragged", "Strings"]

_AT_ONCE = 2**22  # values gathered at once
CROWD, GROUP_OF = 1, 2  # bits of AnnotationTable.flags


@dataclass(frozen=True)
class Strings(Sequence[bytes]):
    """Byte strings end to end: item i is `data[offsets[i]:offsets[i + 1]]`."""

    data: np.ndarray  # uint8 [total]
    offsets: np.ndarray  # int64 [n + 1]

    @classmethod
    def of(cls, items: Iterable[str | bytes]) -> Strings:
        """Pack strings (as UTF-8) or bytes."""
        packed = [item.encode() if isinstance(item, str) else item for item in items]
        lengths = np.fromiter((len(item) for item in packed), np.int64, len(packed))
        return cls(np.frombuffer(b"".join(packed), np.uint8), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()

    @classmethod
    def join(cls, parts: Sequence[Strings]) -> Strings:
        """Concatenation."""
        lengths = [np.diff(part.offsets) for part in parts]
        return cls(np.concatenate([part.data for part in parts]), _offsets(np.concatenate(lengths)))

    def take(self, rows: np.ndarray) -> Strings:
        """The strings of the given rows, in that order."""
        data, offsets = _take(self.data, self.offsets, rows)
        return Strings(data, offsets)


@dataclass(frozen=True)
class Ragged:
    """Lists of integers end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [n + 1]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """Pack one list per image."""
        lengths = np.fromiter((len(item) for item in lists), np.int64, len(lists))
        flat = [value for item in lists for value in item]
        return cls(np.asarray(flat, np.int32).reshape(-1), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def join(cls, parts: Sequence[Ragged]) -> Ragged:
        """Concatenation."""
        lengths = [np.diff(part.offsets) for part in parts]
        return cls(np.concatenate([part.values for part in parts]), _offsets(np.concatenate(lengths)))

    def take(self, rows: np.ndarray) -> Ragged:
        """The lists of the given rows, in that order."""
        return Ragged(*_take(self.values, self.offsets, rows))


@dataclass(frozen=True)
class AnnotationTable(Sequence[dict]):
    """One dataset as columns: n images, m annotations; item i is a Detectron2 dataset dict.

    `boxes` are XYWH in pixels (float32, so a coordinate below 4096 is exact to 0.0003). `labels` are contiguous
    ids. `verified` holds, for federated cards, the keys of the dict (`pos_category_ids`, ...) and one list per image.
    `extras` is one json object per image that is merged into the dict (captions and the like). `absent` are paths of
    images (some, if they are many) that were left out because they were not on disk.
    """

    name: str
    image_root: str
    files: Strings
    ids: np.ndarray | Strings  # int64 [n], or strings
    heights: np.ndarray  # int32 [n]
    widths: np.ndarray  # int32 [n]
    offsets: np.ndarray  # int64 [n + 1], annotations of image i are offsets[i]:offsets[i + 1]
    boxes: np.ndarray  # float32 [m, 4]
    labels: np.ndarray  # int32 [m]
    flags: np.ndarray  # uint8 [m]
    segmentations: Strings | None = None  # json per annotation, empty where there is none
    phrases: Strings | None = None  # utf-8 per annotation
    verified: Mapping[str, Ragged] = field(default_factory=dict)
    extras: Strings | None = None
    absent: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.heights)

    def __iter__(self) -> Iterator[dict]:
        return (self.record(i) for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, asked for {index}")
        return self.record(int(index) % len(self))

    def image_id(self, index: int) -> int | str:
        """The id of an image as its file gives it."""
        value = self.ids[index]
        return value.decode() if isinstance(value, bytes) else int(value)

    def file_name(self, index: int) -> str:
        """Path of an image."""
        return os.path.join(self.image_root, self.files[index].decode())

    def record(self, index: int) -> dict:
        """Image `index` as a Detectron2 dataset dict with contiguous category ids."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        record: dict[str, Any] = {
            "file_name": self.file_name(index),
            "image_id": self.image_id(index),
            "height": int(self.heights[index]),
            "width": int(self.widths[index]),
            "dataset_name": self.name,
        }
        record["annotations"] = [self._annotation(i) for i in range(start, stop)]
        for key, lists in self.verified.items():
            record[key] = lists[index].tolist()
        if self.extras is not None:
            record.update(orjson.loads(self.extras[index]))
        return record

    def _annotation(self, i: int) -> dict:
        flags = int(self.flags[i])
        annotation: dict[str, Any] = {
            "bbox": self.boxes[i].tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": int(self.labels[i]),
            "iscrowd": int(flags & CROWD > 0),
        }
        if flags & GROUP_OF:
            annotation["isgroupof"] = 1
        if self.segmentations is not None and (text := self.segmentations[i]):
            annotation["segmentation"] = orjson.loads(text)
        if self.phrases is not None:
            annotation["phrase"] = self.phrases[i].decode()
        return annotation

    def image_of_annotation(self) -> np.ndarray:
        """Image index of every annotation, int64 [m]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def select(self, images: np.ndarray) -> AnnotationTable:
        """The table of the given images only, in the given order (indices int64)."""
        images = np.asarray(images, np.int64)
        rows, offsets = _take(np.arange(len(self.labels)), self.offsets, images)
        ids = self.ids.take(images) if isinstance(self.ids, Strings) else self.ids[images]
        return replace(
            self,
            files=self.files.take(images),
            ids=ids,
            heights=self.heights[images],
            widths=self.widths[images],
            offsets=offsets,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            flags=self.flags[rows],
            segmentations=None if self.segmentations is None else self.segmentations.take(rows),
            phrases=None if self.phrases is None else self.phrases.take(rows),
            verified={key: lists.take(images) for key, lists in self.verified.items()},
            extras=None if self.extras is None else self.extras.take(images),
        )

    def select_labels(self, images: np.ndarray) -> AnnotationTable:
        """Only `offsets` and `labels` of the given images (for samplers); the other columns stay as they are."""
        labels, offsets = _take(self.labels, self.offsets, np.asarray(images, np.int64))
        return replace(self, offsets=offsets, labels=labels)

    @property
    def crowds(self) -> int:
        """Annotations that training leaves out: crowds, and what readers count as such (difficult, group-of, ...)."""
        return int((self.flags & CROWD > 0).sum())

    def usable_images(self) -> np.ndarray:
        """True for images with at least one annotation that is not a crowd, bool [n]; for captioned images all."""
        if not len(self.labels) and self.extras is not None:
            return np.ones(len(self), bool)
        if not self.flags.any():
            return np.diff(self.offsets) > 0
        objects = np.concatenate([[0], np.cumsum(self.flags & CROWD == 0, dtype=np.int32)])
        return objects[self.offsets[1:]] > objects[self.offsets[:-1]]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _take(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a ragged column: gathered values and their new offsets.

    In pieces: the index of every value takes eight times the memory of a byte.
    """
    rows = np.asarray(rows)
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    new = _offsets(lengths)
    taken = np.empty(int(new[-1]), values.dtype)
    at = 0
    while at < len(rows):
        stop = max(at + 1, int(np.searchsorted(new, new[at] + _AT_ONCE, side="right")) - 1)
        index = np.repeat(starts[at:stop] - new[at:stop], lengths[at:stop]) + np.arange(new[at], new[stop])
        taken[new[at] : new[stop]] = values[index]
        at = stop
    return taken, new
