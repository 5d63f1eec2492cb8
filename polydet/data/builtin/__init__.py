"""The cards that come with the package; importing this registers them and reads no file of any dataset."""

from polydet.data.builtin import bigdetection, coco_lvis, image_text, objects365, odinw, openimages, shapes, voc_wider

__all__ = ["bigdetection", "coco_lvis", "image_text", "objects365", "odinw", "openimages", "shapes", "voc_wider"]
