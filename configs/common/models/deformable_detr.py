"""Deformable-DETR (Zhu et al., 2021), one stage without refinement: strides 8 to 64, 300 queries, 2-d references."""

from detectron2.config import LazyCall as L

from polydet.backbones import ChannelMapper, TimmBackbone
from polydet.data import label_space_of
from polydet.detr import (
    DETR,
    Criterion,
    Decoder,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    Encoder,
    FocalLoss,
    HungarianMatcher,
    LearnedQueries,
    TopK,
)
from polydet.layers import SinePositionEncoding

model = L(DETR)(
    backbone=L(ChannelMapper)(
        bottom_up=L(TimmBackbone)(name="resnet50.tv_in1k", out_features="${..in_features}", norm="frozen", freeze_at=2),
        in_features=["res3", "res4", "res5"],
        out_channels="${..dim}",
        num_outs=4,
        norm="GN",
        bias=True,
    ),
    position=L(SinePositionEncoding)(dim="${..dim}", temperature=10000.0, offset=-0.5),
    encoder=L(Encoder)(
        layer=L(DeformableEncoderLayer)(
            dim="${...dim}", num_heads=8, ffn_dim=1024, dropout=0.1, num_levels="${...backbone.num_outs}"
        ),
        num_layers=6,
        checkpoint_layers=0,
    ),
    queries=L(LearnedQueries)(num_queries=300, dim="${..dim}", content="learned", reference="linear"),
    decoder=L(Decoder)(
        layer=L(DeformableDecoderLayer)(
            dim="${...dim}", num_heads=8, ffn_dim=1024, dropout=0.1, num_levels="${...backbone.num_outs}"
        ),
        num_layers=6,
        query_position=None,
        refine=False,
        look_forward_twice=False,
        norm=False,
        checkpoint_layers=0,
        eps=1e-5,
    ),
    criterion=L(Criterion)(
        matcher=L(HungarianMatcher)(class_cost="focal", class_weight=2.0, box_weight=5.0, giou_weight=2.0),
        class_loss=L(FocalLoss)(alpha=0.25, gamma=2.0),
        class_weight=2.0,
        box_weight=5.0,
        giou_weight=2.0,
    ),
    postprocess=L(TopK)(num=100),
    num_classes=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
    denoising=None,
    dim=256,
    share_heads=True,
    box_prior=-2.0,
    level_embed=True,
)
