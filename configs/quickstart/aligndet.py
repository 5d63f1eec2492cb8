"""AlignDet's whole pipeline on ShapeWorld, two CPU cores, no download.

A backbone from object crops of another dataset (it stands for ImageNet), proposals of unlabelled images,
box-domain pre-training of neck and head, fine-tuning of FCOS.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from aligndet.adapters import FCOSAdapter
from aligndet.pretrainer import AlignDet
from aligndet.proposal_data import build_pretrain_loader, make_proposals
from aligndet.views import TwoViewMapper

from ..common.crop_backbone import crop_backbone
from ..common.models.fcos import model as _fcos
from ..common.optim import adamw as _adamw
from ..common.schedules import cosine as _cosine
from ..common.shapeworld import dataloader as _dataloader
from ..common.shapeworld import train

_narrow = dict(channels=(32, 64, 128, 256))
_fcos.backbone.bottom_up.update(name="resnet18", freeze_at=2)
_fcos.backbone.bottom_up.model_kwargs = _narrow
_fcos.backbone.out_channels = 64
_fcos.head.update(num_convs=2, size_prior=2.0)
_adamw.lr = 1e-3
_cosine.warmup_iters = 20
train.clip_grad.update(kind="norm", value=1.0)
train.output_dir = "./output/quickstart_aligndet"
_dataloader.train.mapper.augmentations.short = 128
_dataloader.test.mapper.augmentations.short = 128
_dataloader.test.batch_size = 10


def _config(**keys):
    return OmegaConf.create(dict(optimizer=_adamw, lr_multiplier=_cosine, **keys), flags={"allow_objects": True})


_pretrain = _config(
    model=L(AlignDet)(adapter=L(FCOSAdapter)(detector=_fcos, num_samples=512), total_steps="${..train.max_iter}"),
    dataloader=_dataloader,
    train=train,
)
_pretrain.model.adapter.detector.num_classes = 1
_pretrain.model.adapter.detector.backbone.bottom_up.weights = "${......train.output_dir}/../backbone.safetensors"
_pretrain.dataloader.train = L(build_pretrain_loader)(
    datasets=["shapes_coco_train"],
    proposals="${...train.output_dir}/../proposals",
    mapper=L(TwoViewMapper)(short_edge_lengths=[112, 128], max_size=256),
    total_batch_size=8,
    num_workers=1,
)
_pretrain.dataloader.test_datasets = []
_pretrain.train.max_iter = 80

_finetune = _config(model=_fcos, dataloader=_dataloader, train=train)
_finetune.model.backbone.bottom_up.weights = None
_finetune.train.update(max_iter=1000, init_checkpoint="stage:pretrain")
_finetune.train.init.key_map = "aligndet.transfer:FCOS"

stages = dict(
    backbone=crop_backbone(_narrow, "${....train.output_dir}"),
    proposals=dict(
        run=L(make_proposals)(
            dataset="shapes_coco_train", output="${....train.output_dir}/proposals", min_side=12, workers=2
        )
    ),
    pretrain=_pretrain,
    finetune=_finetune,
)
