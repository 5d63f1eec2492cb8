"""How Detectron2's model zoo trains, its schedule of 3x: SGD from MSRA's R-50 on BGR images, batch 16."""

from .data import dataloader
from .optim import sgd as optimizer
from .schedules import step as lr_multiplier
from .train import train

for _loader in (dataloader.train, dataloader.test):
    _loader.mapper.image_format = "BGR"
dataloader.train.aspect_ratio_grouping = True
optimizer.params.weight_decay_norm = 0.0
train.update(max_iter=270_000, reference_batch_size=16)
train.init_checkpoint = "${oc.env:POLYDET_WEIGHTS,weights}/R-50.pkl"
lr_multiplier.update(milestones=[210_000, 250_000], warmup_iters=1000)
