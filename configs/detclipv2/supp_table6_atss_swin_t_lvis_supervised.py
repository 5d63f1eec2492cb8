"""Appendix table 6, supervised T: ATSS without words, LVIS only; its settings are not stated, these are table 2's."""

from detectron2.config import LazyCall as L

from polydet.data import build_train_loader, label_space_of
from polydet.dense import ATSSHead, OneStageDetector

from .supp_table6_detclipv2_swin_t_lvis_ft import dataloader, lr_multiplier, model, optimizer, train

_source = dataloader.train.sources.detection
dataloader.train = L(build_train_loader)(
    datasets=["lvis_v1_train"], mapper=_source.mapper.mapper, total_batch_size=64, num_workers=4
)
model = L(OneStageDetector)(
    backbone=model.backbone,
    head=L(ATSSHead)(
        in_channels="${..backbone.out_channels}",
        num_classes=L(label_space_of)(datasets="${dataloader.train.datasets}"),
        strides=[8, 16, 32, 64, 128],
        inference=model.head.inference,
    ),
)
optimizer.lr = 2e-4  # 1e-4 sqrt(64 / 16), the paper's rule
optimizer.params.update(lr_factors={}, weight_decay_factors={"relative_position_bias_table": 0.0})
train.update(init_checkpoint="", output_dir="./output/detclipv2/atss_swin_t_lvis")
