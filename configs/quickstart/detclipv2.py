"""DetCLIPv2 on ShapeWorld: boxes, phrases and captions, two CPU cores, no download.

A backbone from object crops of another dataset (it stands for ImageNet), then pre-training; its run is the folder
``train`` below ``train.output_dir``.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from polydet.engine.image_domain import pretrain_backbone

from ..common.detclipv2_quickstart import dataloader as _dataloader
from ..common.detclipv2_quickstart import lr_multiplier as _lr_multiplier
from ..common.detclipv2_quickstart import model as _model
from ..common.detclipv2_quickstart import optimizer as _optimizer
from ..common.detclipv2_quickstart import train

train.output_dir = "./output/quickstart_detclipv2"
_model.backbone.bottom_up.weights = "${train.output_dir}/../backbone.safetensors"
_run = dict(model=_model, dataloader=_dataloader, optimizer=_optimizer, lr_multiplier=_lr_multiplier, train=train)

stages = dict(
    backbone=dict(
        run=L(pretrain_backbone)(
            dataset="shapes_lvis_train",
            iterations=300,
            model_kwargs=_model.backbone.bottom_up.model_kwargs,
            output="${train.output_dir}/backbone.safetensors",
        )
    ),
    train=OmegaConf.create(_run, flags={"allow_objects": True}),
)
