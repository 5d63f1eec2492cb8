"""Scenes in the formats of Pascal VOC, WIDER FACE and WIDER Pedestrian."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from polydet.data.shapeworld.generate import write_images
from polydet.data.shapeworld.world import HEIGHT, WIDTH, Scene

__all__ = ["write_voc", "write_wider_face", "write_wider_pedestrian"]


def write_voc(root: Path, split: str, scenes: Sequence[Scene], name_of: Mapping[str, str], prefix: str) -> None:
    """`ImageSets/Main/<split>.txt`, `Annotations/*.xml`, `JPEGImages/*.jpg`; small shapes are marked difficult."""
    ids = [f"{prefix}{i:06d}" for i in range(len(scenes))]
    for folder in ("ImageSets/Main", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{id_}\n" for id_ in ids))
    for id_, scene in zip(ids, scenes):
        top = ElementTree.Element("annotation")
        ElementTree.SubElement(top, "filename").text = f"{id_}.jpg"
        size = ElementTree.SubElement(top, "size")
        for tag, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(value)
        for shape in scene.shapes:
            x0, y0, x1, y1 = shape.box()
            item = ElementTree.SubElement(top, "object")
            ElementTree.SubElement(item, "name").text = name_of[shape.kind]
            ElementTree.SubElement(item, "difficult").text = str(int((x1 - x0) * (y1 - y0) < 300))
            box = ElementTree.SubElement(item, "bndbox")
            corners = {"xmin": int(x0) + 1, "ymin": int(y0) + 1, "xmax": int(x1), "ymax": int(y1)}
            for tag, value in corners.items():
                ElementTree.SubElement(box, tag).text = str(value)
        ElementTree.ElementTree(top).write(root / "Annotations" / f"{id_}.xml")
    write_images(root / "JPEGImages", scenes, [f"{id_}.jpg" for id_ in ids])


def write_wider_face(root: Path, split: str, scenes: Sequence[Scene], kinds: Collection[str]) -> None:
    """`wider_face_split/wider_face_<split>_bbx_gt.txt`; shapes of `kinds` are faces, gray ones invalid."""
    lines, names = [], []
    for i, scene in enumerate(scenes):
        names.append(f"0--Shapes/0_Shapes_{i:05d}.jpg")
        faces = [shape for shape in scene.shapes if shape.kind in kinds]
        lines += [names[-1], str(len(faces))]
        for shape in faces:
            x0, y0, x1, y1 = (int(v) for v in shape.box())
            lines.append(f"{x0} {y0} {x1 - x0} {y1 - y0} 0 0 0 {int(shape.colour == 'gray')} 0 0 ")
        if not faces:
            lines.append("0 0 0 0 0 0 0 0 0 0 ")
    (root / "wider_face_split").mkdir(parents=True, exist_ok=True)
    (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text("".join(f"{x}\n" for x in lines))
    (root / f"WIDER_{split}" / "images" / "0--Shapes").mkdir(parents=True, exist_ok=True)
    write_images(root / f"WIDER_{split}" / "images", scenes, names)


def write_wider_pedestrian(
    root: Path, split: str, scenes: Sequence[Scene], kinds: Collection[str], ignored: Collection[str]
) -> None:
    """`Annotations/<split>_bbox.txt` and `<split>_ignore.txt`; shapes of `kinds` are pedestrians."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    names = [f"ad{i:05d}.jpg" for i in range(len(scenes))]
    for suffix, wanted in (("bbox", kinds), ("ignore", ignored)):
        lines = []
        for name, scene in zip(names, scenes):
            boxes = [shape.box() for shape in scene.shapes if shape.kind in wanted]
            numbers = [f"{int(x0)} {int(y0)} {int(x1 - x0)} {int(y1 - y0)}" for x0, y0, x1, y1 in boxes]
            if numbers or suffix == "bbox":
                lines.append(" ".join([name, *numbers]))
        (root / "Annotations" / f"{split}_{suffix}.txt").write_text("".join(f"{x}\n" for x in lines))
    (root / split / "ad_01").mkdir(parents=True, exist_ok=True)
    write_images(root / split / "ad_01", scenes, names)
