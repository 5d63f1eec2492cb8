"""Small versions of every detector that AlignDet pre-trains, built as a user would build them."""

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.structures import Boxes, Instances

from aligndet.adapters import CascadeAdapter, DETRAdapter, FCOSAdapter, RCNNAdapter, RetinaNetAdapter
from aligndet.detectors import FCOS, fcos_head
from aligndet.htc import CompositeRCNN, HTCMaskHead, HTCROIHeads
from polydet.backbones import ChannelMapper, TimmBackbone, fpn_p3_p7
from polydet.backbones.cbnet import CBNet, CBNetFPN
from polydet.detr import (
    DETR,
    BestClass,
    Criterion,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    HungarianMatcher,
    LearnedQueries,
    SoftmaxLoss,
)
from polydet.engine import load_config
from polydet.layers import SinePositionEncoding

PIXELS = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
DIM = 16


def body(norm="train", features=("res2", "res3", "res4", "res5")):
    return TimmBackbone("resnet18", out_features=list(features), weights=None, norm=norm)


def fcos(classes=1, norm="", radius=float("inf")):
    backbone = fpn_p3_p7(body(), DIM, norm=norm)
    head = fcos_head(DIM, classes, num_convs=2)
    return FCOS(backbone=backbone, head=head, num_classes=classes, center_sampling_radius=radius, **PIXELS)


def retinanet(classes=1, norm=""):
    backbone = fpn_p3_p7(body(), DIM, norm=norm)
    anchors = DefaultAnchorGenerator(
        sizes=[[x, x * 1.26, x * 1.59] for x in (32, 64, 128, 256, 512)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
    )
    head = RetinaNetHead(
        input_shape=[ShapeSpec(channels=DIM)] * 5, num_classes=classes, num_anchors=9, conv_dims=[DIM] * 2
    )
    return RetinaNet(
        backbone=backbone,
        head=head,
        anchor_generator=anchors,
        box2box_transform=Box2BoxTransform(weights=[1.0] * 4),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=classes,
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        **PIXELS,
    )


def rpn(batch=256, fraction=1.0):
    return RPN(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        head=StandardRPNHead(in_channels=DIM, num_anchors=3),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[16], [32], [64], [128], [256]], aspect_ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=[1.0] * 4),
        batch_size_per_image=batch,
        positive_fraction=fraction,
        pre_nms_topk=(200, 100),
        post_nms_topk=(100, 50),
    )


def rcnn_parts(norm=""):
    backbone = FPN(body(), ["res2", "res3", "res4", "res5"], DIM, norm=norm, top_block=LastLevelMaxPool())
    pooler = ROIPooler(7, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=0, pooler_type="ROIAlignV2")
    return backbone, pooler


def box_head():
    return FastRCNNConvFCHead(ShapeSpec(channels=DIM, height=7, width=7), conv_dims=[DIM], fc_dims=[32])


def predictor(classes, agnostic=False, weights=(10.0, 10.0, 5.0, 5.0)):
    return FastRCNNOutputLayers(
        ShapeSpec(channels=32),
        box2box_transform=Box2BoxTransform(weights=weights),
        num_classes=classes,
        cls_agnostic_bbox_reg=agnostic,
    )


def faster_rcnn(classes=1, norm=""):
    backbone, pooler = rcnn_parts(norm)
    heads = StandardROIHeads(
        num_classes=classes,
        batch_size_per_image=256,
        positive_fraction=1.0,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=True),
        box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=pooler,
        box_head=box_head(),
        box_predictor=predictor(classes),
    )
    return GeneralizedRCNN(backbone=backbone, proposal_generator=rpn(), roi_heads=heads, **PIXELS)


def cascade(classes=1, norm=""):
    backbone, pooler = rcnn_parts(norm)
    heads = CascadeROIHeads(
        num_classes=classes,
        batch_size_per_image=64,
        positive_fraction=0.25,
        proposal_matchers=[Matcher([t], [0, 1], allow_low_quality_matches=False) for t in (0.5, 0.6, 0.7)],
        box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=pooler,
        box_heads=[box_head() for _ in range(3)],
        box_predictors=[predictor(classes, True, [10.0 * k, 10.0 * k, 5.0 * k, 5.0 * k]) for k in (1, 2, 3)],
    )
    return GeneralizedRCNN(backbone=backbone, proposal_generator=rpn(256, 0.5), roi_heads=heads, **PIXELS)


def swin():
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    names = ["res2", "res3", "res4", "res5"]
    return TimmBackbone("swin_tiny_patch4_window7_224", names, None, out_norm=True, model_kwargs=small)


def composite_htc(classes=1, masks=False, soft_nms_iou=None):
    """CBNetV2 in small: two Swins, HTC heads."""
    names = ["p2", "p3", "p4", "p5"]
    backbone = CBNetFPN(CBNet(swin(), swin()), ["res2", "res3", "res4", "res5"], DIM, top_block=LastLevelMaxPool())
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    mask = {}
    if masks:
        shape = ShapeSpec(channels=DIM, height=14, width=14)
        heads = [HTCMaskHead(shape, num_classes=classes, conv_dims=[DIM, DIM], flow=i > 0) for i in range(3)]
        pooler = ROIPooler(14, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")
        mask = {"mask_in_features": names, "mask_pooler": pooler, "mask_heads": heads}
    heads = HTCROIHeads(
        num_classes=classes,
        batch_size_per_image=64,
        positive_fraction=0.25,
        proposal_matchers=[Matcher([t], [0, 1], allow_low_quality_matches=False) for t in (0.5, 0.6, 0.7)],
        box_in_features=names,
        box_pooler=ROIPooler(7, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2"),
        box_heads=[box_head() for _ in range(3)],
        box_predictors=[predictor(classes, True, [10.0 * k, 10.0 * k, 5.0 * k, 5.0 * k]) for k in (1, 2, 3)],
        soft_nms_iou=soft_nms_iou,
        **mask,
    )
    return CompositeRCNN(backbone=backbone, proposal_generator=rpn(256, 0.5), roi_heads=heads, **PIXELS)


def detr(classes=4, dropout=0.0):
    layers = {"dim": DIM, "num_heads": 4, "ffn_dim": 32, "dropout": dropout}
    detector = DETR(
        backbone=ChannelMapper(body(features=["res5"]), ["res5"], DIM, norm=""),
        position=SinePositionEncoding(DIM),
        encoder=Encoder(EncoderLayer(**layers), 1),
        queries=LearnedQueries(20, DIM),
        decoder=Decoder(DecoderLayer(**layers), 2, norm=True),
        criterion=Criterion(HungarianMatcher("softmax", 1.0), SoftmaxLoss(1.0, by_weight=False)),
        postprocess=BestClass(),
        num_classes=classes,
        dim=DIM,
        background_class=True,
        box_prior=None,
        level_embed=False,
    )
    return stirred(detector)


def stirred(detector):
    """As after a few steps: transformers start with many zeros, beyond which no gradient gets."""
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if not name.startswith("backbone.bottom_up"):
                parameter.add_(0.02 * torch.randn_like(parameter))
    return detector


def mask_rcnn(classes=1, norm=""):
    detector = faster_rcnn(classes, norm)
    pooler = ROIPooler(14, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=0, pooler_type="ROIAlignV2")
    shape = ShapeSpec(channels=DIM, height=14, width=14)
    heads = detector.roi_heads
    heads.mask_on, heads.mask_in_features, heads.mask_pooler = True, ["p2", "p3", "p4", "p5"], pooler
    heads.mask_head = MaskRCNNConvUpsampleHead(shape, num_classes=classes, conv_dims=[DIM, DIM])
    return detector


def dino(classes=4):
    """A two-stage deformable descendant with denoising, from its quickstart."""
    model = load_config(Path(__file__).parents[2] / "configs" / "quickstart" / "detr" / "dino.py").model
    model.update(num_classes=classes, dim=32)
    for part in (model.encoder, model.decoder):
        part.num_layers = 2
        part.layer.ffn_dim = 32
    model.queries.num_queries = 20
    model.denoising.num_queries = 20
    return stirred(instantiate(model))


DETECTORS = {
    "dino": (dino, lambda d: DETRAdapter(d, hidden=16, dim=8)),
    "mask_rcnn": (mask_rcnn, lambda d: RCNNAdapter(d, hidden=16, dim=8)),
    "detr": (detr, lambda d: DETRAdapter(d, hidden=16, dim=8)),
    "fcos": (fcos, lambda d: FCOSAdapter(d, num_samples=256, dim=8)),
    "retinanet": (retinanet, lambda d: RetinaNetAdapter(d, num_samples=128, dim=8)),
    "faster_rcnn": (faster_rcnn, lambda d: RCNNAdapter(d, hidden=16, dim=8)),
    "cbnet": (composite_htc, lambda d: CascadeAdapter(d, hidden=16, dim=8)),
    "cascade": (cascade, lambda d: CascadeAdapter(d, hidden=16, dim=8)),
}


def build(kind, seed=0):
    """The adapter of a small detector with one class."""
    torch.manual_seed(seed)
    detector, adapter = DETECTORS[kind]
    return adapter(detector())


def two_view_batch(images=2, proposals=6, seed=0):
    """What TwoViewMapper returns, made up: objects of every scale, the second view flipped, images of two sizes."""
    rng = np.random.default_rng(seed)
    batch = []
    for i in range(images):
        height, width = 512 + 32 * i, 704
        side = np.array([20.0, 50.0, 110.0, 210.0, 400.0])[np.arange(proposals) % 5]
        low = rng.uniform(0, 100, (proposals, 2))
        corners = np.concatenate([low, low + side[:, None] * rng.uniform(0.9, 1.0, (proposals, 2))], 1)
        corners[0] = [10, 10, 700, 500]
        boxes = torch.tensor(corners, dtype=torch.float32)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(proposals, dtype=torch.int64)
        image = torch.from_numpy(rng.integers(0, 255, (3, height, width), dtype=np.uint8))
        flipped = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        batch.append(
            {
                "file_name": f"{i}.jpg",
                "image_id": i,
                "image": image,
                "instances": instances,
                "second_image": image.flip(2),
                "second_boxes": flipped,
            }
        )
    return batch


def scene(seed, height=120, width=160):
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(4):
        x, y, w, h = rng.integers(0, 100), rng.integers(0, 70), rng.integers(20, 60), rng.integers(20, 50)
        image[y : y + h, x : x + w] = rng.integers(0, 255, 3)
    return cv2.GaussianBlur(image, (3, 3), 0)
