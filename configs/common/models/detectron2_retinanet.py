"""Detectron2's own RetinaNet R50-FPN, as its model zoo has it: MSRA's ResNet, which reads BGR images."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from .detectron2_faster_rcnn import model as _rcnn
from .retinanet import model

model.backbone.top_block = L(LastLevelP6P7)(in_channels=2048, out_channels=256, in_feature="res5")
model.backbone.bottom_up = _rcnn.backbone.bottom_up
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.update(pixel_mean=_rcnn.pixel_mean, pixel_std=_rcnn.pixel_std, input_format="BGR")
