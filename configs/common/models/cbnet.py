"""CBNetV2 as AlignDet's repository trains it: two Swin-L, hybrid task cascade without its semantic branch, soft-NMS."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers

from aligndet.detectors import num_classes_of
from aligndet.htc import CompositeRCNN, HTCMaskHead, HTCROIHeads
from polydet.backbones import TimmBackbone
from polydet.backbones.cbnet import CBNet, CBNetFPN

from .faster_rcnn import model as faster_rcnn

_SCALES = (1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32)


def _swin():
    return L(TimmBackbone)(
        name="swin_large_patch4_window7_224.ms_in22k",
        out_features=["res2", "res3", "res4", "res5"],
        drop_path_rate=0.2,
        out_norm=True,
    )


def _box_head():
    shape = L(ShapeSpec)(channels=256, height=7, width=7)
    return L(FastRCNNConvFCHead)(input_shape=shape, conv_dims=[256] * 4, fc_dims=[1024])


def _predictor(weights, stage_weight):
    return L(FastRCNNOutputLayers)(
        input_shape=L(ShapeSpec)(channels=1024),
        box2box_transform=L(Box2BoxTransform)(weights=weights),
        num_classes="${...num_classes}",
        cls_agnostic_bbox_reg=True,
        smooth_l1_beta=1.0,
        loss_weight={"loss_cls": stage_weight, "loss_box_reg": stage_weight},
        test_score_thresh=0.001,
        test_nms_thresh=0.5,
        test_topk_per_image=100,
    )


def _mask_head(stage, stage_weight):
    return L(HTCMaskHead)(
        input_shape=L(ShapeSpec)(channels=256, height=14, width=14),
        num_classes="${...num_classes}",
        conv_dims=[256] * 5,
        flow=stage > 0,
        loss_weight=stage_weight,
    )


_STAGES = tuple(  # standard deviations of centres and of sizes, loss weight
    ([1 / centre, 1 / centre, 1 / size, 1 / size], weight)
    for centre, size, weight in ((0.1, 0.2, 1.0), (0.05, 0.1, 0.5), (0.033, 0.067, 0.25))
)

model = L(CompositeRCNN)(
    assistant_weight=0.5,
    backbone=L(CBNetFPN)(
        bottom_up=L(CBNet)(assistant=_swin(), lead=_swin()),
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=256,
        norm="",
        top_block=L(LastLevelMaxPool)(),
    ),
    proposal_generator=faster_rcnn.proposal_generator,
    roi_heads=L(HTCROIHeads)(
        num_classes=L(num_classes_of)(datasets="${....dataloader.train.datasets}"),
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matchers=[
            L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False) for iou in (0.5, 0.6, 0.7)
        ],
        box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=L(ROIPooler)(output_size=7, scales=_SCALES, sampling_ratio=0, pooler_type="ROIAlignV2"),
        box_heads=[_box_head() for _ in _STAGES],
        box_predictors=[_predictor(weights, stage_weight) for weights, stage_weight in _STAGES],
        mask_in_features=["p2", "p3", "p4", "p5"],
        mask_pooler=L(ROIPooler)(output_size=14, scales=_SCALES, sampling_ratio=0, pooler_type="ROIAlignV2"),
        mask_heads=[_mask_head(stage, _STAGES[stage][1]) for stage in range(3)],
        soft_nms_iou=0.5,
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
model.proposal_generator.update(smooth_l1_beta=1 / 9, post_nms_topk=(2000, 1000), anchor_boundary_thresh=0)
