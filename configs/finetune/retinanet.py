"""RetinaNet on your own cards, from ImageNet: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from detectron2.config import LazyCall as L

from aligndet.detectors import retinanet_head

from ..common.models.retinanet import model
from .common.run import AUTO, dataloader, lr_multiplier, optimizer, pyramid, recipe_of, train

_keys = dict(
    levels="model.head_in_features",
    strides="model.anchor_generator.strides",
    anchor_octaves="model.anchor_generator.sizes",
    num_levels="model.head.num_levels",
    tower_convs="model.head.num_convs",
    detections="model.max_detections_per_image",
)
model.update(head_in_features=AUTO, max_detections_per_image=AUTO)
model.anchor_generator.update(strides=AUTO, sizes=AUTO)
model.head = L(retinanet_head)(
    channels="${..backbone.out_channels}", num_classes="${..num_classes}", num_levels=AUTO, num_convs=AUTO
)
model.num_classes.merge = "${dataloader.train.merge}"
dataloader.train.merge = "name"

recipe = recipe_of(lr=(1e-3, 2e-4), keys={**pyramid(model), **_keys})
