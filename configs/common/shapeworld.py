"""ShapeWorld at quickstart size: small pictures, two CPU cores, no download."""

from detectron2.config import LazyCall as L

from polydet.data.augmentations import resize_shortest_edge

from .data import dataloader
from .train import train

dataloader.train.datasets = ["shapes_coco_train"]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.train.mapper.augmentations = L(resize_shortest_edge)(short=160, max_size=256)
dataloader.test.mapper.augmentations = L(resize_shortest_edge)(short=160, max_size=256, flip=False)
dataloader.test.num_workers = 1
dataloader.test_datasets = ["shapes_coco_val"]

train.checkpoint_period = 200
train.max_checkpoints = 2
