"""The DETR family at quickstart size: ShapeWorld at 128 pixels, two CPU cores, from scratch.

Half of a ResNet-18, 128 channels, 2 + 3 layers. Members without refined boxes, or with dense attention over one level,
learn slowly: their backbone comes from object crops.
"""

from omegaconf import DictConfig

from .crop_backbone import after_crops
from .optim import adamw as optimizer
from .schedules import cosine as lr_multiplier
from .shapeworld import dataloader, train


def shrink(model: DictConfig, num_queries: int = 60) -> DictConfig:
    """The same member, small enough to learn ShapeWorld from scratch in minutes."""
    model.backbone.bottom_up.update(name="resnet18", weights=None, norm="train", freeze_at=0)
    model.backbone.bottom_up.model_kwargs = dict(channels=(32, 64, 128, 256))
    model.dim = 128
    for part, layers in ((model.encoder, 2), (model.decoder, 3)):
        part.num_layers = layers
        part.layer.ffn_dim = 256
        part.layer.dropout = 0.0
    model.queries.num_queries = num_queries
    return model


def from_crops(model: DictConfig, max_iter: int) -> dict:
    """The stages of a member that learns boxes early and classes late: many small steps, from a backbone of crops."""
    dataloader.train.total_batch_size = 4
    train.max_iter = max_iter
    crops = dict(crop_size=24, iterations=600, batch_size=64)  # as large as the objects in the images
    run = dict(dataloader=dataloader, optimizer=optimizer, lr_multiplier=lr_multiplier, train=train)
    return after_crops(model, crops, **run)


def one_level(model: DictConfig, max_iter: int, num_queries: int = 60) -> dict:
    """The stages of a member with dense attention, whose first plateau is shorter at a small learning rate."""
    shrink(model, num_queries)
    model.backbone.in_features = model.backbone.bottom_up.out_features = ["res3"]  # stride 32 leaves 4 x 6 tokens
    model.backbone.bottom_up.update(norm="frozen", freeze_at=5)
    optimizer.lr = 2e-4
    train.clip_grad.value = 0.1
    return from_crops(model, max_iter)


for _part in (dataloader.train, dataloader.test):
    _part.mapper.augmentations.short = 128
optimizer.lr = 8e-4
lr_multiplier.warmup_iters = 30
train.max_iter = 400
train.clip_grad.update(kind="norm", value=1.0)
train.checkpoint_period = 5000
