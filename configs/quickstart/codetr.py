"""Co-Deformable-DETR++ with ATSS and Faster R-CNN on ShapeWorld: from scratch, in five minutes on two CPU cores."""

from ..common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ..common.models.co_deformable_detr_pp import model

shrink(model)
rcnn = dict(fc_dims=[128], proposals_before_nms=[300, 300], proposals=200, rois_per_image=64)
model.heads = [dict(name="faster_rcnn", options=rcnn), dict(name="atss", options=dict(channels=64))]

train.max_iter = 250
train.output_dir = "./output/quickstart_codetr"
