"""DETR (Carion et al., 2020): ResNet-50, C5, 100 queries, 6 + 6 layers, softmax with a background class."""

from detectron2.config import LazyCall as L

from polydet.backbones import ChannelMapper, TimmBackbone
from polydet.data import label_space_of
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
from polydet.layers import SinePositionEncoding

model = L(DETR)(
    backbone=L(ChannelMapper)(
        bottom_up=L(TimmBackbone)(name="resnet50.tv_in1k", out_features=["res5"], norm="frozen", freeze_at=2),
        in_features=["res5"],
        out_channels="${..dim}",
        num_outs=1,
        norm="",
        bias=True,
    ),
    position=L(SinePositionEncoding)(dim="${..dim}", temperature=10000.0),
    encoder=L(Encoder)(
        layer=L(EncoderLayer)(dim="${...dim}", num_heads=8, ffn_dim=2048, dropout=0.1, activation="relu"),
        num_layers=6,
        scale_position=False,
    ),
    queries=L(LearnedQueries)(num_queries=100, dim="${..dim}"),
    decoder=L(Decoder)(
        layer=L(DecoderLayer)(dim="${...dim}", num_heads=8, ffn_dim=2048, dropout=0.1, activation="relu"),
        num_layers=6,
        query_position=None,
        norm=True,
        eps=1e-5,
    ),
    criterion=L(Criterion)(
        matcher=L(HungarianMatcher)(class_cost="softmax", class_weight=1.0, box_weight=5.0, giou_weight=2.0),
        class_loss=L(SoftmaxLoss)(background_weight=0.1),
        class_weight=1.0,
        box_weight=5.0,
        giou_weight=2.0,
    ),
    postprocess=L(BestClass)(),
    num_classes=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
    dim=256,
    background_class=True,
    share_heads=True,
    box_prior=None,
    level_embed=False,
)
