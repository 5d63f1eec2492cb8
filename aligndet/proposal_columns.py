"""Proposals of a whole dataset as flat columns, memory-mapped, and as COCO json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polydet.data import DatasetError
from polydet.data.arrays import DamagedArrays, load_arrays, save_arrays
from polydet.data.readers.json_file import column, load_json, safe_relative_path, section
from polydet.files import whole_file, whole_folder

CATEGORY = "selective_search"
META_NAME = "columns.json"


@dataclass(frozen=True)
class ProposalColumns:
    """Boxes of n images in five arrays.

    Attributes:
        boxes: float32 ``[N, 4]`` xywh pixels, image after image (what dataset tables hold, so that they are mapped).
        labels: uint16 ``[N]`` pseudo-class from 0; all zero before clustering.
        offsets: int64 ``[n + 1]``; image i owns rows ``offsets[i]:offsets[i + 1]``.
        image_ids: int64 ``[n]``.
        sizes: int32 ``[n, 2]`` height, width in pixels.
        file_names: n paths relative to the image root.
        info: settings and counts of the run.
    """

    boxes: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    file_names: Sequence[str]
    info: dict[str, Any]

    ARRAYS = ("boxes", "labels", "offsets", "image_ids", "sizes")

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One category, or one per cluster."""
        count = int(self.info.get("num_labels", 1))
        return (CATEGORY,) if count == 1 else tuple(f"cluster_{i + 1}" for i in range(count))

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``[k, 4]`` xyxy and labels ``[k]`` of the image at this position."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        boxes = np.array(self.boxes[rows])
        boxes[:, 2:] += boxes[:, :2]
        return boxes, self.labels[rows]

    def save(self, folder: Path) -> None:
        """Write the folder whole; who has mapped the old one (a run that trains on it, or these very columns) keeps
        reading it.

        Raises:
            OSError: the disk failed; an old folder is as it was.
        """
        meta = {"file_names": list(self.file_names), "info": self.info}
        with whole_folder(folder) as whole:
            save_arrays(whole, {name: getattr(self, name) for name in self.ARRAYS}, meta, META_NAME)

    @classmethod
    def load(cls, folder: Path) -> ProposalColumns:
        """Map a saved folder.

        Raises:
            FileNotFoundError: the folder is absent or its writing never finished.
            DatasetError: a file of it is damaged, naming it.
        """
        folder = Path(folder)
        try:
            arrays, meta = load_arrays(folder, META_NAME)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no complete proposals in {folder}: make them with tools/selective_search.py (it resumes)"
            ) from None
        except DamagedArrays as error:
            raise DatasetError(
                str(error), remedy=f"remove {folder} and make it again with tools/selective_search.py (it resumes)"
            ) from error
        return cls(**arrays, file_names=meta["file_names"], info=meta["info"])

    @classmethod
    def read_coco(cls, path: Path) -> ProposalColumns:
        """Proposals that somebody else made, from COCO json (xywh; the categories are the labels), in its order.

        Boxes without area or with numbers that are not finite are left out and counted in ``info``.

        Raises:
            DatasetError: the file cannot be read or is no such json; names the entry.
        """
        path = Path(path)
        document = load_json(path)
        images, annotations = section(document, "images", path), section(document, "annotations", path)
        ids = column(images, "id", "int", path, "images")
        known, counts = np.unique(ids, return_counts=True)
        if not len(ids):
            raise DatasetError("has no images", file=path)
        if len(known) < len(ids):
            raise DatasetError(f"images' ids repeat: {known[counts > 1][:3].tolist()}", file=path)
        names = column(images, "file_name", "str", path, "images")
        names = [safe_relative_path(name, path, f"images[{i}]") for i, name in enumerate(names)]
        sizes = [column(images, key, "int", path, "images") for key in ("height", "width")]
        categories = np.unique(column(section(document, "categories", path), "id", "int", path, "categories"))
        owner = _index(known, column(annotations, "image_id", "int", path, "annotations"), path, "image_id")
        labels = _index(categories, column(annotations, "category_id", "int", path, "annotations"), path, "category_id")
        boxes = column(annotations, "bbox", "box", path, "annotations")
        usable = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
        image = np.argsort(ids)[owner[usable]]
        order = np.argsort(image, kind="stable")
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.bincount(image, minlength=len(ids)), out=offsets[1:])
        info = {"images": len(ids), "boxes": int(usable.sum()), "dropped": int((~usable).sum())}
        info |= {"num_labels": len(categories), "source": path.name}
        return cls(
            boxes=boxes[usable][order].astype(np.float32),
            labels=labels[usable][order].astype(np.uint16),
            offsets=offsets,
            image_ids=ids,
            sizes=np.stack(sizes, 1).astype(np.int32),
            file_names=names,
            info=info,
        )

    def write_coco(self, path: Path) -> None:
        """Write COCO json (xywh, category ids from 1), a piece at a time so that memory stays flat."""
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self.class_names)]
        with whole_file(path) as temporary, temporary.open("w") as out:
            out.write('{"info": ' + json.dumps(self.info) + ', "categories": ' + json.dumps(categories))
            out.write(', "images": [')
            for i, name in enumerate(self.file_names):
                height, width = (int(v) for v in self.sizes[i])
                image = {"id": int(self.image_ids[i]), "file_name": name, "height": height, "width": width}
                out.write((", " if i else "") + json.dumps(image))
            out.write('], "annotations": [')
            for row, annotation in enumerate(self._annotations()):
                out.write((", " if row else "") + json.dumps(annotation))
            out.write("]}")

    def _annotations(self) -> Iterator[dict[str, Any]]:
        row = 0
        for i in range(len(self)):
            rows = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
            for box, label in zip(self.boxes[rows].tolist(), self.labels[rows].tolist()):
                row += 1
                x, y, w, h = (round(value, 2) for value in box)
                yield {
                    "id": row,
                    "image_id": int(self.image_ids[i]),
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": round(w * h, 2),
                    "iscrowd": 0,
                }


def _index(known: np.ndarray, wanted: np.ndarray, path: Path, key: str) -> np.ndarray:
    """Place of each wanted id among the sorted known ones. Raises DatasetError naming the first that is not there."""
    place = np.searchsorted(known, wanted).clip(max=max(len(known) - 1, 0))
    absent = np.flatnonzero(known[place] != wanted) if len(known) else np.arange(len(wanted))
    if len(absent):
        raise DatasetError(
            f"{key} {int(wanted[absent[0]])} is not in the file", file=path, where=f"annotations[{absent[0]}]"
        )
    return place
