"""CenterNet2 with text classifiers (ScaleDet): ResNet-50 (ImageNet-21k-P), FPN P3 to P7, CLIP ViT-B/32."""

from detectron2.config import LazyCall as L

from polydet.backbones import TimmBackbone, fpn_p3_p7
from polydet.data import label_space_of
from polydet.text import OpenClipEncoder
from scaledet import (
    CenterNetHead,
    CenterNetProposals,
    LabelLoss,
    ScaleDet,
    TextCascadeROIHeads,
    embedding_dim,
)

resnet50 = L(TimmBackbone)(
    name="resnet50",
    weights="${oc.env:POLYDET_WEIGHTS,weights}/resnet50_miil_21k.pth",
    norm="frozen",
)
swin_t = L(TimmBackbone)(
    name="swin_tiny_patch4_window7_224.ms_in22k", weights="timm", drop_path_rate=0.2, out_norm=True
)
swin_b = L(TimmBackbone)(
    name="swin_base_patch4_window7_224.ms_in22k", weights="timm", drop_path_rate=0.3, out_norm=True
)
clip = L(OpenClipEncoder)(model_name="ViT-B-32-quickgelu", pretrained="openai")
openclip = L(OpenClipEncoder)(model_name="ViT-H-14", pretrained="laion2b_s32b_b79k")

model = L(ScaleDet)(
    backbone=L(fpn_p3_p7)(bottom_up=resnet50, out_channels=256),
    proposal_generator=L(CenterNetProposals)(head=L(CenterNetHead)(in_channels="${...backbone.out_channels}")),
    roi_heads=L(TextCascadeROIHeads)(
        label_loss=L(LabelLoss)(tau=0.02, soft_weight=10.0),
        text_dim=L(embedding_dim)(encoder="${...text_encoder}"),
        in_channels="${..backbone.out_channels}",
    ),
    text_encoder=clip,
    templates="clip80",
    label_space=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
    on_vocabulary_mismatch="error",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
