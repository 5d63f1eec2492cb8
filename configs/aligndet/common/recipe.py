"""Published recipes of AlignDet (docs/aligndet.md): pre-training and fine-tuning of any of its detectors.

A row calls one of the two functions and unpacks a config. What differs between rows is in the calls.
"""

from pathlib import Path

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from aligndet.adapters import CascadeAdapter, DETRAdapter, FCOSAdapter, RCNNAdapter, RetinaNetAdapter
from aligndet.low_data import build_low_data_loader
from aligndet.pretrainer import AlignDet, MomentumLength
from aligndet.proposal_data import build_pretrain_loader
from aligndet.views import TwoViewMapper
from polydet.data.augmentations import detr_multi_scale, large_scale_jitter, resize_shortest_edge

from ...common.data import dataloader as _dataloader
from ...common.models.cbnet import model as _cbnet
from ...common.models.detr import model as _detr
from ...common.models.faster_rcnn import model as _faster_rcnn
from ...common.models.fcos import model as _fcos
from ...common.models.mask_rcnn import model as _mask_rcnn
from ...common.models.retinanet import model as _retinanet
from ...common.optim import adamw as _adamw
from ...common.optim import sgd as _sgd
from ...common.schedules import step as _step
from ...common.train import train as _train

MODELS = dict(
    fcos=_fcos, retinanet=_retinanet, faster_rcnn=_faster_rcnn, mask_rcnn=_mask_rcnn, detr=_detr, cbnet=_cbnet
)
KEY_MAPS = dict(
    fcos="FCOS", retinanet="RETINANET", faster_rcnn="FASTER_RCNN", mask_rcnn="MASK_RCNN", detr="DETR", cbnet="CASCADE"
)
WEIGHTS = "${oc.env:POLYDET_WEIGHTS,weights}"
FOUR_MAPS = ["res2", "res3", "res4", "res5"]

# lr, weight decay of the baseline and of the aligned model (the authors: x 1.5, x 0.5 for SGD)
SGD_RATES = dict(
    fcos=((0.01, 1e-4), (0.015, 5e-5)),
    retinanet=((0.01, 1e-4), (0.015, 5e-5)),
    faster_rcnn=((0.02, 1e-4), (0.03, 5e-5)),
    mask_rcnn=((0.02, 1e-4), (0.03, 5e-5)),
)
SCHEDULES = {  # optimiser steps at batch 16, drops as fractions
    "12k": (12_000, (9 / 12, 11 / 12)),
    "1x": (90_000, (60 / 90, 82.5 / 90)),
    "2x": (180_000, (16 / 24, 22 / 24)),
    "3x": (270_000, (24 / 36, 33 / 36)),
    "4x": (360_000, (32 / 48, 44 / 48)),
    "50ep": (375_000, (300_000 / 375_000,)),
    "100ep": (750_000, (600_000 / 750_000,)),
    "150ep": (1_109_000, (100 / 150,)),
}
SHORT_640_800 = [640, 672, 704, 736, 768, 800]
SHORT_480_800 = list(range(480, 801, 32))


def _new(node):
    return OmegaConf.create(node, flags={"allow_objects": True}) if isinstance(node, dict) else node.copy()


def _optimizer(detector, lr, weight_decay, adamw):
    optimizer = _new(_adamw if adamw else _sgd)
    optimizer.update(lr=lr, weight_decay=weight_decay)
    if detector == "fcos":
        optimizer.params.update(lr_factor_bias=2.0, weight_decay_bias=0.0)
    return optimizer


def _schedule(milestones, warmup=500, constant_warmup=False):
    schedule = _new(_step)
    schedule.update(unit="fraction", milestones=list(milestones), warmup_iters=warmup)
    if constant_warmup:
        schedule.update(warmup="constant", warmup_factor=1 / 3)
    return schedule


def adamw(lr, weight_decay, swin=True):
    """AdamW; for Swin without weight decay on norms and position tables."""
    optimizer = _optimizer(None, lr, weight_decay, adamw=True)
    if swin:
        optimizer.params.weight_decay_norm = 0.0
        optimizer.params.weight_decay_factors = {"relative_position_bias_table": 0.0}
    return optimizer


def swin(model, name, drop_path=0.0):
    """Put a Swin backbone under a detector."""
    model.backbone.bottom_up.update(
        name=name, out_features=FOUR_MAPS, drop_path_rate=drop_path, out_norm=True, freeze_at=0
    )


def ssl_resnet(model, weights, unfrozen):
    """ResNet-50 with converted self-supervised weights; in fine-tuning all of it is trained, norms too."""
    model.backbone.bottom_up.weights = f"{WEIGHTS}/{weights}.safetensors"
    if unfrozen:
        model.backbone.bottom_up.update(norm="sync", freeze_at=0)
        if "roi_heads" in model:
            model.roi_heads.box_head.conv_norm = "SyncBN"
            model.roi_heads.mask_head.conv_norm = "SyncBN"


def pretrain(file, detector, tasks=("classification", "regression"), freeze_backbone=True):
    """Box-domain pre-training on COCO train2017 without labels: 12 epochs (DETR 50), batch 16."""
    model = _new(MODELS[detector])
    if detector == "mask_rcnn":
        model = _new(MODELS["faster_rcnn"])  # one pre-training for both; the mask head starts random
    adapter = dict(
        fcos=FCOSAdapter,
        retinanet=RetinaNetAdapter,
        faster_rcnn=RCNNAdapter,
        mask_rcnn=RCNNAdapter,
        detr=DETRAdapter,
        cbnet=CascadeAdapter,
    )[detector]
    _for_proposals(detector, model)
    dataloader = _new(_dataloader)
    dataloader.train = L(build_pretrain_loader)(
        datasets=["coco_2017_train"],
        proposals="${oc.env:POLYDET_PROPOSALS,proposals}/coco_2017_train",
        mapper=L(TwoViewMapper)(short_edge_lengths=SHORT_640_800, max_size=1333, max_proposals=None),
        total_batch_size=16,
        aspect_ratio_grouping=True,
        num_workers=4,
    )
    if detector in ("retinanet", "detr"):
        dataloader.train.mapper.max_proposals = 50
    if detector == "detr":
        dataloader.train.proposals = "${oc.env:POLYDET_PROPOSALS,proposals}/coco_2017_train_256"
    dataloader.test_datasets = []
    train = _new(_train)
    train.update(max_iter=90_000, reference_batch_size=16, output_dir=f"./output/aligndet/{Path(file).stem}")
    train.hooks = [L(MomentumLength)()]
    optimizer = _optimizer(None, SGD_RATES.get(detector, ((1e-4, 0.05),))[0][0], 1e-4, detector in ("detr", "cbnet"))
    lr_multiplier = _schedule(SCHEDULES["1x"][1])
    if detector == "detr":
        train.max_iter = SCHEDULES["50ep"][0]
        train.clip_grad.update(kind="norm", value=0.1)
        optimizer.lr = 5e-5
        lr_multiplier = _schedule(SCHEDULES["50ep"][1], warmup=0)
    model = L(AlignDet)(
        adapter=L(adapter)(detector=model, **({"rpn_weight": 1.5} if detector == "cbnet" else {})),
        total_steps="${..train.max_iter}",
        momentum=0.996,
        temperature=0.5,
        contrastive_weight=1.0,
        tasks=list(tasks),
        freeze_backbone=freeze_backbone,
    )
    return model, dataloader, optimizer, lr_multiplier, train


def _for_proposals(detector, model):
    """One class (DETR: 256 clusters), and the published sampling."""
    if detector == "detr":
        model.num_classes = 256
        # cross entropy with background at weight 1, divided by the number of matched queries
        model.criterion.class_loss.update(background_weight=1.0, by_weight=False)
    elif detector == "cbnet":
        model.roi_heads.num_classes = 1
        for key in ("mask_in_features", "mask_pooler", "mask_heads"):
            del model.roi_heads[key]
    elif detector in ("fcos", "retinanet"):
        model.num_classes = 1
    else:
        model.proposal_generator.update(batch_size_per_image=4096, positive_fraction=1.0)
        model.roi_heads.update(num_classes=1, batch_size_per_image=4096, positive_fraction=1.0)
        model.roi_heads.proposal_matcher.allow_low_quality_matches = True
    if "freeze_at" in model.backbone.bottom_up:
        model.backbone.bottom_up.freeze_at = 0  # all of it is frozen


def finetune(file, detector, schedule, aligned=None, modules=""):
    """Fine-tuning on COCO at batch 16, or its baseline; ``data.percent`` and ``data.fold`` choose a low-data fold.

    ``aligned`` names the pre-training config whose weights it starts from; ``modules`` a part of them (table 9).
    """
    model, dataloader = _new(MODELS[detector]), _new(_dataloader)
    loader = dataloader.train
    loader.update(
        _target_=build_low_data_loader,
        percent="${...data.percent}",
        fold="${...data.fold}",
        aspect_ratio_grouping=True,
    )
    loader.mapper.augmentations = L(resize_shortest_edge)(short=800, max_size=1333)
    loader.mapper.use_masks = detector in ("mask_rcnn", "cbnet")
    is_detr, is_sgd = detector == "detr", detector in SGD_RATES
    if is_detr:
        loader.mapper.augmentations = L(detr_multi_scale)()
        model.backbone.bottom_up.update(norm="sync", freeze_at=0)
    elif detector != "cbnet":
        model.backbone.bottom_up.norm = "eval"  # of ResNets and MobileNet; Swin has no batch norm
        model.backbone.norm = "SyncBN"
    steps, milestones = SCHEDULES[schedule]
    train = _new(_train)
    train.update(max_iter=steps, reference_batch_size=16, output_dir=f"./output/aligndet/{Path(file).stem}")
    if aligned:
        train.init_checkpoint = f"./output/aligndet/{aligned}/model_final.pth"
        train.init.key_map = f"aligndet.transfer:{KEY_MAPS[detector]}{modules}"
    rates = SGD_RATES.get(detector, ((1e-4, 1e-4), (1e-4, 1e-4)))[bool(aligned)]
    optimizer = _optimizer(detector, *rates, adamw=not is_sgd)
    # the authors warm DETR up where they count iterations, not where they count epochs
    warmup = 0 if is_detr and schedule == "150ep" else 500
    lr_multiplier = _schedule(milestones, warmup, constant_warmup=detector == "fcos")
    if is_detr:
        optimizer.params.lr_factors = {r"^backbone\.bottom_up\.": 0.1}
        train.clip_grad.update(kind="norm", value=0.1)
    data = _new(dict(percent=100, fold=1))
    return model, dataloader, optimizer, lr_multiplier, train, data


def multi_scale(dataloader):
    """Short side from 640 to 800 (self-supervised backbones)."""
    dataloader.train.mapper.augmentations = L(resize_shortest_edge)(short=SHORT_640_800, max_size=1333)


def swin_augmentation(dataloader):
    """DETR's multi-scale and crop."""
    dataloader.train.mapper.augmentations = L(detr_multi_scale)()


def jitter_1024(dataloader):
    """Large-scale jitter to 1024 pixels, scale 0.1 to 2, no copy-paste."""
    dataloader.train.mapper.augmentations = L(large_scale_jitter)(size=1024, scale=[0.1, 2.0])


def wide_scale(dataloader):
    """Short side 400 to 1400, long side at most 1600; test at 1400 x 1600."""
    dataloader.train.mapper.augmentations = L(resize_shortest_edge)(short=[400, 1400], max_size=1600, style="range")
    dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=1400, max_size=1600)]


def voc(model, dataloader):
    """Pascal VOC 07+12 trainval, test 07, short side 480 to 800."""
    dataloader.train.datasets = ["voc_0712_trainval"]
    dataloader.test_datasets = ["voc_2007_test"]
    dataloader.train.mapper.augmentations = L(resize_shortest_edge)(short=SHORT_480_800, max_size=1333)
    if "decoder" in model:
        model.backbone.bottom_up.update(norm="eval", freeze_at=2)
