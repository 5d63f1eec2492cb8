"""The cards that come with the package; importing this registers them and reads no file of any dataset."""

from polydet.data.builtin import coco_lvis, shapes

__all__ = ["coco_lvis", "shapes"]
