"""DINO Swin-L with 4 scales: 12 epochs."""

from detectron2.config import LazyCall as L

from polydet.backbones import TimmBackbone

from .dino_4scale_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = L(TimmBackbone)(
    name="swin_large_patch4_window12_384.ms_in22k",
    out_features="${..in_features}",
    drop_path_rate=0.2,
    checkpointing=True,
    out_norm=True,
)
