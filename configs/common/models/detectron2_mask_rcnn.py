"""Detectron2's own Mask R-CNN R50-FPN, as its model zoo has it."""

from .detectron2_faster_rcnn import model
from .mask_rcnn import model as _masked

for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[_key] = _masked.roi_heads[_key]
