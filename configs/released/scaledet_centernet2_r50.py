"""ScaleDet on Detectron2's own ResNet, which CenterNet2_R50_1x and its LVIS and Objects365 siblings start."""

from ..common.models.detectron2_faster_rcnn import model as _rcnn
from ..scaledet.table1_scaledet_r50_l_c import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = _rcnn.backbone.bottom_up
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.update(pixel_mean=_rcnn.pixel_mean, pixel_std=_rcnn.pixel_std, input_format="BGR")
for _loader in (dataloader.train, dataloader.test):
    _loader.mapper.image_format = "BGR"
train.init_checkpoint = "${oc.env:POLYDET_WEIGHTS,weights}/CenterNet2_R50_1x.pth"
