"""Co-Deformable-DETR++: ATSS and Faster R-CNN beside Deformable-DETR++."""

from .co_common import co_deformable
from .deformable_detr_pp import model

co_deformable(model)
model.backbone.bias = False  # mmdetection has none before a norm
