"""FCOS on your own cards, from ImageNet: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from ..common.models.fcos import model
from .common.run import AUTO, dataloader, lr_multiplier, optimizer, pyramid, recipe_of, train

_keys = dict(
    levels="model.head_in_features",
    num_levels="model.head.num_levels",
    tower_convs="model.head.num_convs",
    detections="model.max_detections_per_image",
)
model.head.update(num_levels=AUTO, num_convs=AUTO, size_prior=2.0)
model.update(head_in_features=AUTO, max_detections_per_image=AUTO, center_sampling_radius=1.5)
model.num_classes.merge = "${dataloader.train.merge}"
dataloader.train.merge = "name"

recipe = recipe_of(lr=(1e-3, 2e-4), keys={**pyramid(model), **_keys})
