"""ATSS on your own cards, from ImageNet: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from detectron2.config import LazyCall as L

from polydet.backbones import TimmBackbone
from polydet.data import label_space_of
from polydet.dense import ATSSHead, OneStageDetector
from polydet.dense.postprocess import DenseInference

from .common.run import AUTO, dataloader, lr_multiplier, optimizer, pyramid, recipe_of, train

model = L(OneStageDetector)(
    backbone=dict(bottom_up=L(TimmBackbone)()),
    in_features=AUTO,
    head=L(ATSSHead)(
        in_channels="${..backbone.out_channels}",
        channels="${..backbone.out_channels}",
        num_classes=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
        strides=AUTO,
        num_convs=AUTO,
        inference=L(DenseInference)(max_detections=AUTO),
    ),
)
_keys = dict(
    levels="model.in_features",
    strides="model.head.strides",
    tower_convs="model.head.num_convs",
    detections="model.head.inference.max_detections",
)
dataloader.train.merge = "name"

recipe = recipe_of(lr=(1e-3, 2e-4), keys={**pyramid(model), **_keys})
