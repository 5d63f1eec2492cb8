"""Query2Label: ResNet-50 C5 at its own width 2048, 1 + 2 layers with 4 heads, asymmetric loss 0 / 2."""

from detectron2.config import LazyCall as L

from metr.query2label import LabelDecoderLayer, Query2Label
from polydet.backbones import TimmBackbone
from polydet.data import label_space_of
from polydet.detr import Encoder, EncoderLayer
from polydet.layers import SinePositionEncoding

_layer = dict(dim=2048, num_heads=4, ffn_dim=8192, dropout=0.1)

model = L(Query2Label)(
    backbone=L(TimmBackbone)(name="resnet50.tv_in1k", out_features=["res5"], norm="frozen", freeze_at=2),
    position=L(SinePositionEncoding)(dim=2048),
    encoder=L(Encoder)(layer=L(EncoderLayer)(**_layer), num_layers=1),
    decoder_layer=L(LabelDecoderLayer)(**_layer),
    num_layers=2,
    label_space=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
    asl=dict(gamma_pos=0.0, gamma_neg=2.0, clip=0.0),
)
