"""One file of the authors' numbers: a header in words and the arrays of each step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from golden_rules import directions, draw_image, draw_objects, draw_state
from torch import Tensor

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Golden:
    """What an authors' code answered.

    Attributes:
        header: `source` (repository, commit, functions), `how` (in words), `num_classes`, `gains` (see
            `golden_rules.draw`), `shapes` of the authors' tensors by name, `aliases`, `rows` (of the tensors whose
            name matches, set to one number: a class that none has), `parameters` (names in the rows
            of the digests) and `steps`: per step the images as ``[height, width, objects]``.
        arrays: per step ``{step}/losses`` with the names in the header's `losses`, ``{step}/gradients``
            ``[P, 3]`` (norm and two projections; NaN for a parameter that does not train), and per image i
            ``{step}/{i}/boxes`` (xyxy pixels of the image), ``scores``, ``classes``; what a step lacks was not asked.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def num_classes(self) -> int:
        return self.header["num_classes"]

    def state(self) -> dict[str, Tensor]:
        """The weights, under the authors' names."""
        header = self.header
        drawn = draw_state(header["shapes"], [tuple(g) for g in header["gains"]], header.get("aliases"))
        for pattern, rows, value in header.get("rows", ()):
            for name in drawn:
                if re.search(pattern, name):
                    drawn[name][rows] = value
        return {name: torch.from_numpy(value) for name, value in drawn.items()}

    def ids(self) -> dict[str, Tensor]:
        """In place of each weight the numbers of its elements among all, from 1: what a layout map makes of them
        says where each element went. Aliases have equal numbers."""
        numbers, start = {}, 1
        for name, shape in self.header["shapes"].items():
            count = int(np.prod(shape, dtype=np.int64))
            numbers[name] = torch.arange(start, start + count, dtype=torch.int32).reshape(shape)
            start += count
        return {**numbers, **{name: numbers[of] for name, of in self.header.get("aliases", {}).items()}}

    def inputs(self, step: str) -> list[dict[str, Any]]:
        """Detectron2's dicts of a step's images; `height` and `width` are the image's own."""
        return batch(step, self.header["steps"][step], self.num_classes)

    def losses(self, step: str) -> dict[str, float]:
        """Weighted losses under the authors' names."""
        return dict(zip(self.header["losses"][step], self.arrays[f"{step}/losses"].tolist()))

    def save(self, name: str) -> None:
        """Write ``data/{name}.npz``; the header travels as JSON bytes so that it is compressed too."""
        header = np.frombuffer(json.dumps(self.header).encode(), dtype=np.uint8)
        np.savez_compressed(DATA / f"{name}.npz", header=header, **self.arrays)


def load_golden(name: str) -> Golden:
    """The file ``data/{name}.npz``."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return Golden(json.loads(arrays.pop("header").tobytes()), arrays)


def batch(step: str, images: Sequence[Sequence[int]], num_classes: int) -> list[dict[str, Any]]:
    """Drawn images and objects of a step; each image is ``[height, width, objects]``."""
    inputs = []
    for index, (height, width, count) in enumerate(images):
        name = f"{step}/{index}"
        boxes, labels = draw_objects(name, count, height, width, num_classes)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.from_numpy(labels)
        image = torch.from_numpy(draw_image(name, height, width))
        entry = {"image": image, "height": height, "width": width, "image_id": index, "file_name": name}
        inputs.append({**entry, "instances": instances})
    return inputs


def digest(gradients: Mapping[str, Tensor | None]) -> np.ndarray:
    """``[P, 3]`` norm and two projections of each gradient by the authors' name; NaN where there is none."""
    rows = []
    for name, gradient in gradients.items():
        if gradient is None:
            rows.append(np.full(3, np.nan))
            continue
        flat = gradient.detach().double().flatten().numpy()
        rows.append(np.concatenate(([np.linalg.norm(flat)], directions(name, gradient.shape) @ flat)))
    return np.stack(rows).astype(np.float32)
