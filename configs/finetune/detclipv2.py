"""DetCLIPv2 on your own cards with boxes: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from detectron2.config import LazyCall as L

from detclipv2 import DetectionConcepts
from polydet.text import FrozenTextTower, MiniLMEncoder

from ..common.models.detclipv2 import model
from .common.run import AUTO, dataloader, lr_multiplier, optimizer, pyramid, recipe_of, train

model.text_tower = L(FrozenTextTower)(encoder=L(MiniLMEncoder)())
model.update(definitions=None, checkpointing=False)
model.backbone.bottom_up.update(drop_path_rate=0.0, checkpointing=False, out_norm=False)
model.head.update(dim=384, strides=AUTO, num_convs=AUTO, anchor_scale=4.0, similarity="cosine")
model.head.inference.max_detections = AUTO
dataloader.train.mapper = L(DetectionConcepts)(
    mapper=dataloader.train.mapper, datasets="${dataloader.train.datasets}", num_concepts=150
)
dataloader.test.mapper.augmentations.update(
    short="${dataloader.train.mapper.mapper.augmentations.short}",
    max_size="${dataloader.train.mapper.mapper.augmentations.max_size}",
)
_keys = dict(
    short="dataloader.train.mapper.mapper.augmentations.short",
    max_size="dataloader.train.mapper.mapper.augmentations.max_size",
    strides="model.head.strides",
    tower_convs="model.head.num_convs",
    detections="model.head.inference.max_detections",
)

recipe = recipe_of(lr=(1e-3, 2e-4), keys={**pyramid(model), **_keys})
