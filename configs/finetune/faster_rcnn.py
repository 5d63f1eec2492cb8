"""Faster R-CNN on your own cards, from ImageNet: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from ..common.models.faster_rcnn import model
from .common.run import AUTO, dataloader, lr_multiplier, optimizer, pyramid, recipe_of, train

_rpn, _roi = "model.proposal_generator", "model.roi_heads"
_keys = dict(
    levels=f"{_rpn}.in_features",
    strides=f"{_rpn}.anchor_generator.strides",
    anchor_sizes=f"{_rpn}.anchor_generator.sizes",
    candidates=f"{_rpn}.pre_nms_topk",
    proposals=f"{_rpn}.post_nms_topk",
    roi_levels=f"{_roi}.box_in_features",
    roi_scales=f"{_roi}.box_pooler.scales",
    pooler=f"{_roi}.box_pooler.output_size",
    box_convs=f"{_roi}.box_head.conv_dims",
    fc_dims=f"{_roi}.box_head.fc_dims",
    rois=f"{_roi}.batch_size_per_image",
    detections=f"{_roi}.box_predictor.test_topk_per_image",
)
model.proposal_generator.update(in_features=AUTO, pre_nms_topk=AUTO, post_nms_topk=AUTO, batch_size_per_image=128)
model.proposal_generator.anchor_generator.update(sizes=AUTO, strides=AUTO)
model.roi_heads.update(box_in_features=AUTO, batch_size_per_image=AUTO)
model.roi_heads.num_classes.merge = "${dataloader.train.merge}"
model.roi_heads.box_pooler.update(scales=AUTO, output_size=AUTO)
model.roi_heads.box_head.update(conv_dims=AUTO, fc_dims=AUTO)
_size = "${...box_pooler.output_size}"
model.roi_heads.box_head.input_shape.update(height=_size, width=_size)
model.roi_heads.box_predictor.test_topk_per_image = AUTO
dataloader.train.merge = "name"

recipe = recipe_of(lr=(1e-3, 2e-4), visits=400, keys={**pyramid(model), **_keys}, finest=2, coarsest=6)
