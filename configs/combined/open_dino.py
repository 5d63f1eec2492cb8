"""DINO whose classes are words: a text head, and ScaleDet's soft labels on its queries.

On ShapeWorld as the quickstarts: two datasets with different label spaces at once, any words at test time.
"""

from detectron2.config import LazyCall as L

from polydet.data import label_space_of
from polydet.detr import DatasetLabels, OpenDETR, TextLabels
from polydet.text import MiniLMEncoder
from scaledet import SoftLabels

from ..quickstart.detr.dino import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.update(datasets=["shapes_coco_train", "shapes_lvis_train"], merge="name")
dataloader.test_datasets = ["shapes_coco_val", "shapes_lvis_val", "shapes_wild_val", "shapes_wild_shuffled_val"]

_words = dict(label_space="${model.label_space}", text_encoder="${model.text_encoder}", templates="${model.templates}")
model._target_ = OpenDETR
del model.num_classes
model.update(
    label_space=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
    text_encoder=L(MiniLMEncoder)(),
    templates="a",
    labels=L(TextLabels)(scale=20.0, learn_scale=True, bias=-4.6),
    label_scope=L(DatasetLabels)(label_space="${model.label_space}", mask_foreign=True, federated="verified"),
)
model.queries.num_classes = None
model.denoising.num_classes = "${model.label_space}"
model.criterion.extra = [L(SoftLabels)(weight=0.2, **_words)]
train.output_dir = "./output/open_dino"
