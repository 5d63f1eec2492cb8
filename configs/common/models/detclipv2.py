"""DetCLIPv2-T: Swin-T, FPN P3 to P7, ATSS with the deformable module, CLIP's ViT-L/14 text tower with 16 tokens."""

from detectron2.config import LazyCall as L

from detclipv2 import AlignmentHead, DetCLIPv2, RegionSelection, WordNetDefinitions, WordRegionLoss
from polydet.backbones import TimmBackbone, fpn_p3_p7
from polydet.dense.postprocess import DenseInference
from polydet.text import OpenClipTextTower

model = L(DetCLIPv2)(
    backbone=L(fpn_p3_p7)(
        bottom_up=L(TimmBackbone)(
            name="swin_tiny_patch4_window7_224.ms_in1k",
            weights="timm",
            drop_path_rate=0.2,
            checkpointing=True,
            out_norm=True,
        ),
        out_channels=256,
    ),
    head=L(AlignmentHead)(
        in_channels="${..backbone.out_channels}",
        channels="${..backbone.out_channels}",
        dim=768,  # of the text tower
        strides=[8, 16, 32, 64, 128],
        deformable=True,
        similarity="bias",
        box_weight=2.0,
        quality_weight=1.0,
        inference=L(DenseInference)(score_threshold=0.0, topk_per_level=1000, nms_threshold=0.6, max_detections=300),
    ),
    text_tower=L(OpenClipTextTower)(
        model_name="ViT-L-14-quickgelu",
        pretrained="openai",
        context_length=16,
        pooling="eot",
        checkpointing=True,
    ),
    vocabulary=[],
    definitions=L(WordNetDefinitions)(),
    template="{name}, {definition}",
    max_gathered=1000,
    selection=L(RegionSelection)(score="batch_text", k=100, nms_threshold=0.6, candidates=1000),
    classification_selection=L(RegionSelection)(score="batch_text", k=1, nms_threshold=0.6, candidates=1000),
    pairs=L(WordRegionLoss)(
        temperature=0.5, label_smoothing=0.1, side="text_to_image", norm_axis="images", matching="closest"
    ),
    pairs_weight=0.1,
    classification_temperature=0.5,
    checkpointing=True,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
