"""What all fine-tuning shares: a small backbone with ImageNet weights, AdamW, cosine; the rest follows from the data.

``"auto"`` is decided by the node ``recipe`` of a config, see docs/own_data.md.
"""

from detectron2.config import LazyCall as L

from polydet.backbones import fpn
from polydet.data.augmentations import resize_shortest_edge

from ...common.data import dataloader
from ...common.optim import adamw as optimizer
from ...common.schedules import cosine as lr_multiplier
from ...common.train import train

AUTO = "auto"

dataloader.train.update(datasets=[], total_batch_size=AUTO, num_workers=AUTO)
dataloader.train.mapper.augmentations = L(resize_shortest_edge)(short=AUTO, max_size=AUTO)
dataloader.test.mapper.augmentations = L(resize_shortest_edge)(
    short="${dataloader.train.mapper.augmentations.short}",
    max_size="${dataloader.train.mapper.augmentations.max_size}",
    flip=False,
)
dataloader.test.update(num_workers="${dataloader.train.num_workers}", batch_size=4)
dataloader.test_datasets = []
optimizer.update(lr=AUTO, weight_decay=0.05)
lr_multiplier.warmup_iters = AUTO
train.update(max_iter=AUTO, eval_period=AUTO, checkpoint_period=1000)
train.clip_grad.update(kind="norm", value=1.0)
train.amp.dtype = AUTO


def recipe_of(lr, keys, visits=300, **released):
    """The node ``recipe`` of a model: rates for batches of 4 and 16, where its quantities stand, images shown in the
    two minutes of a CPU at 240 pixels, those of released weights that differ from what speed=gpu would take."""
    shared = dict(
        short="dataloader.train.mapper.augmentations.short",
        max_size="dataloader.train.mapper.augmentations.max_size",
        workers="dataloader.train.num_workers",
        batch="dataloader.train.total_batch_size",
        lr="optimizer.lr",
        steps="train.max_iter",
        warmup="lr_multiplier.warmup_iters",
        eval_period="train.eval_period",
        precision="train.amp.dtype",
    )
    return dict(
        speed="auto",
        fast=dict(batch=4, lr=lr[0], visits=visits),
        gpu=dict(batch=16, lr=lr[1], visits=90_000),
        released=dict(finest=3, coarsest=7) | released,
        keys={**shared, **keys},
    )


def start_from_imagenet(body, model, freeze_at=2):
    """The backbone that the speed allows, its first maps frozen; -> the keys of its quantities."""
    body.update(name=AUTO, weights=AUTO, norm="frozen", freeze_at=freeze_at)
    model.update(pixel_mean=AUTO, pixel_std=AUTO)
    return dict(
        backbone="model.backbone.bottom_up.name",
        weights="model.backbone.bottom_up.weights",
        pixel_mean="model.pixel_mean",
        pixel_std="model.pixel_std",
    )


def pyramid(model):
    """FPN over the levels that the objects need; -> the keys of its quantities."""
    model.backbone = L(fpn)(bottom_up=model.backbone.bottom_up, out_channels=AUTO, coarsest=AUTO)
    model.backbone.bottom_up.out_features = AUTO
    return dict(
        channels="model.backbone.out_channels",
        coarsest="model.backbone.coarsest",
        body_levels="model.backbone.bottom_up.out_features",
        **start_from_imagenet(model.backbone.bottom_up, model),
    )
