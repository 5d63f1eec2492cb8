"""OpenImages csv files of a scene list: boxes, image-level labels, class descriptions, hierarchy."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polydet.data.shapeworld.names import COARSE, HIERARCHY, OID_IDS
from polydet.data.shapeworld.world import HEIGHT, WIDTH, Scene

__all__ = ["BOX_COLUMNS", "write_openimages"]

BOX_COLUMNS = (
    "ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax",
    "IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside",
)  # fmt: skip
_MIDS = {**OID_IDS, "Entity": "/m/0bl9f"}
_OID_NAME = {kind: name.capitalize() for kind, name in COARSE.items()}


def write_openimages(
    folder: Path,
    split: str,
    scenes: Sequence[Scene],
    rng: np.random.Generator,
    name_of: Mapping[str, str] = _OID_NAME,
    mids: Mapping[str, str] = _MIDS,
    hierarchy: Mapping[str, Sequence[str]] = HIERARCHY,
    prefix: str | None = None,
) -> list[str]:
    """Write the csv and json files of one split; returns the image file names (`<16 hex digits>.jpg`).

    Clusters of shapes become one group-of box. One box in eight carries its parent's label only, as where the
    annotator could not tell. Image-level labels verify what is there and three absent classes.

    Args:
        name_of: kind -> display name.
        mids: display name -> machine id.
        hierarchy: parent -> children, display names.
        prefix: of the box file, by default the split (the real training file is `oidv6-train-...`).
    """
    root = next(iter(hierarchy))
    parent = {child: name for name, children in hierarchy.items() if name != root for child in children}
    boxes: list[tuple] = []
    labels: list[tuple] = []
    names = []
    for i, scene in enumerate(scenes):
        image_id = f"{zlib.crc32(f'{split}/{i}'.encode()):08x}{i:08x}"
        names.append(f"{image_id}.jpg")
        present = set()
        for box, kind, group in _objects(scene):
            name = name_of[kind]
            if rng.random() < 0.125 and name in parent:
                name = parent[name]
            present.add(name)
            boxes.append((image_id, "xclick", mids[name], 1, *box, 0, 0, int(group), 0, 0))
        leaves = sorted(set(name_of.values()) - present - {name_of[shape.kind] for shape in scene.shapes})
        absent = rng.choice(leaves, min(3, len(leaves)), replace=False).tolist()
        labels += [(image_id, "verification", mids[name], 1) for name in sorted(present)]
        labels += [(image_id, "verification", mids[name], 0) for name in sorted(absent)]
    _write_csv(folder / f"{prefix or split}-annotations-bbox.csv", boxes, BOX_COLUMNS)
    header = ("ImageID", "Source", "LabelName", "Confidence")
    _write_csv(folder / f"{split}-annotations-human-imagelabels-boxable.csv", labels, header)
    _write_csv(folder / "class-descriptions-boxable.csv", [(mids[n], n) for n in mids if n != "Entity"])
    tree = _tree(root, hierarchy, mids)
    (folder / "bbox_labels_600_hierarchy.json").write_text(json.dumps(tree))
    return names


def _objects(scene: Scene) -> Iterable[tuple[tuple[float, float, float, float], str, bool]]:
    """(XMin, XMax, YMin, YMax in 0..1), kind and whether it is a group, of every box of a scene."""
    grouped = {i for group in scene.groups for i in group}
    for group in scene.groups:
        corners = np.array([scene.shapes[i].box() for i in group])
        yield _relative(*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)), scene.shapes[group[0]].kind, True
    for i, shape in enumerate(scene.shapes):
        if i not in grouped:
            yield _relative(*shape.box()), shape.kind, False


def _relative(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    return tuple(round(float(v), 6) for v in (x0 / WIDTH, x1 / WIDTH, y0 / HEIGHT, y1 / HEIGHT))  # type: ignore[return-value]


def _tree(name: str, hierarchy: Mapping[str, Sequence[str]], mids: Mapping[str, str]) -> dict[str, Any]:
    node: dict[str, Any] = {"LabelName": mids[name]}
    if name in hierarchy:
        node["Subcategory"] = [_tree(child, hierarchy, mids) for child in hierarchy[name]]
    return node


def _write_csv(path: Path, rows: Iterable[tuple], header: tuple[str, ...] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerows([header] if header else [])
        writer.writerows(rows)
