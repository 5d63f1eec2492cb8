"""Released files in whatever names their authors gave: one small file a family, recognised by names and shapes.

Papers register theirs where they are imported (`codetr.checkpoint`, `scaledet.checkpoint`, `aligndet.released`), as
meta-architectures are: whoever has a model has the layouts that fit it.
"""

from polydet.engine.layouts import backbones, detr, mmdet  # noqa: F401  register themselves
from polydet.engine.layouts.classes import coco_by_id, row_names, rows_of_zoo
from polydet.engine.layouts.registry import Converted, Layout, find_layout, list_layouts, register_layout

__all__ = [
    "Converted",
    "Layout",
    "coco_by_id",
    "find_layout",
    "list_layouts",
    "register_layout",
    "row_names",
    "rows_of_zoo",
]
