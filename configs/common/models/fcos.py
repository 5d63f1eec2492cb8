"""FCOS, R50-FPN P3 to P7, group norm in the towers, no centre sampling (AlignDet's baseline)."""

from detectron2.config import LazyCall as L

from aligndet.detectors import FCOS, fcos_head, num_classes_of
from polydet.backbones import TimmBackbone, fpn_p3_p7

model = L(FCOS)(
    backbone=L(fpn_p3_p7)(
        bottom_up=L(TimmBackbone)(
            name="resnet50.tv_in1k", out_features=["res3", "res4", "res5"], norm="frozen", freeze_at=2
        ),
        out_channels=256,
        in_features="${.bottom_up.out_features}",
        norm="",
    ),
    head=L(fcos_head)(channels="${..backbone.out_channels}", num_classes="${..num_classes}", num_convs=4),
    num_classes=L(num_classes_of)(datasets="${...dataloader.train.datasets}"),
    center_sampling_radius=float("inf"),
    focal_loss_alpha=0.25,
    focal_loss_gamma=2.0,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms_thresh=0.5,
    max_detections_per_image=100,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
