"""Table 1, ScaleDet L,C,O365,OID (also Table 2 row 1, Tables 4, 5, 7 and 8): the base of every row here."""

from detectron2.config import LazyCall as L

from polydet.data import RepeatFactorSampler
from polydet.data.augmentations import resize_shortest_edge
from polydet.data.builtin.odinw import odinw13

from ..common.data import dataloader, lsj
from ..common.models.centernet2 import model
from ..common.optim import adamw as optimizer
from ..common.schedules import cosine as lr_multiplier
from ..common.train import train

dataloader.train.datasets = ["lvis_v1_train", "coco_2017_train", "objects365_v2_train", "openimages_v6_train"]
dataloader.train.update(total_batch_size=128, sampler=L(RepeatFactorSampler)(repeat_threshold=0.001))
dataloader.train.mapper.augmentations = lsj
dataloader.test.mapper.augmentations = L(resize_shortest_edge)(short=640, max_size=640, flip=False)
dataloader.test_datasets = ["lvis_v1_val", "coco_2017_val", "objects365_v2_val", "openimages_v6_val"]
dataloader.groups = dict(odinw13=dict(val=odinw13("val"), test=odinw13("test")))  # direct transfer: docs/scaledet.md
optimizer.update(lr=2e-4, weight_decay=1e-4)
lr_multiplier.update(warmup_iters=10000, warmup_factor=1e-4)
train.update(max_iter=750000, reference_batch_size=128, output_dir="./output/scaledet/r50_l_c_o365_oid")
train.clip_grad.update(kind="value", value=1.0)
train.amp.dtype = "float16"
