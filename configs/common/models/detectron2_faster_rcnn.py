"""Detectron2's own Faster R-CNN R50-FPN, as its model zoo has it: MSRA's ResNet, which reads BGR images."""

from detectron2.config import LazyCall as L
from detectron2.modeling import ResNet
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN

from .faster_rcnn import model

model.backbone.bottom_up = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,
)
model.proposal_generator._target_ = RPN
model.proposal_generator.anchor_matcher = L(Matcher)(
    thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
)
for _key in ("ignore_padding", "valid_multiple", "select_padding"):
    del model.proposal_generator[_key]
model.roi_heads.box_head.update(conv_dims=[], fc_dims=[1024, 1024])
model.roi_heads.box_predictor.input_shape.channels = 1024
model.update(pixel_mean=[103.53, 116.28, 123.675], pixel_std=[1.0, 1.0, 1.0], input_format="BGR")
