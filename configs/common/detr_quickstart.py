"""The DETR family at quickstart size: ShapeWorld at 128 pixels, two CPU cores, from scratch.

Half of a ResNet-18, 128 channels, 2 + 3 layers.
"""

from omegaconf import DictConfig

from .optim import adamw as optimizer
from .schedules import cosine as lr_multiplier
from .shapeworld import dataloader, train


def shrink(model: DictConfig, num_queries: int = 60) -> DictConfig:
    """The same member, small enough to learn ShapeWorld from scratch in minutes."""
    model.backbone.bottom_up.update(name="resnet18", weights=None, norm="train", freeze_at=0)
    model.backbone.bottom_up.model_kwargs = dict(channels=(32, 64, 128, 256))
    if list(model.backbone.in_features) == ["res5"]:  # stride 32 leaves 4 x 6 tokens of these images
        model.backbone.in_features = model.backbone.bottom_up.out_features = ["res4"]
    model.dim = 128
    for part, layers in ((model.encoder, 2), (model.decoder, 3)):
        part.num_layers = layers
        part.layer.ffn_dim = 256
        part.layer.dropout = 0.0
    model.queries.num_queries = num_queries
    return model


for _part in (dataloader.train, dataloader.test):
    _part.mapper.augmentations.short = 128
optimizer.lr = 8e-4
lr_multiplier.warmup_iters = 30
train.max_iter = 400
train.clip_grad.update(kind="norm", value=1.0)
train.checkpoint_period = 5000
