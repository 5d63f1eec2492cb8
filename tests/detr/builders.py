"""Small members of the family, built from parts, and random batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from polydet.backbones import ChannelMapper, TimmBackbone
from polydet.detr import (
    DETR,
    AnchorPosition,
    AnchorQueries,
    BestClass,
    ConditionalDecoderLayer,
    ConditionalPosition,
    Criterion,
    Decoder,
    DecoderLayer,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    Denoising,
    Encoder,
    EncoderLayer,
    FocalLoss,
    HungarianMatcher,
    LearnedQueries,
    ModulatedAnchorPosition,
    SoftmaxLoss,
    TopK,
    TwoStageQueries,
)
from polydet.layers import SinePositionEncoding

DIM, HEADS, FFN, CLASSES, QUERIES, ENCODERS, DECODERS = 64, 4, 48, 7, 12, 2, 3
DENSE = {"dim": DIM, "num_heads": HEADS, "ffn_dim": FFN, "dropout": 0.0}


def backbone_of(one_level: bool, name: str = "resnet10t", norm: str = "train") -> ChannelMapper:
    """C5 alone without norm, or strides 8 to 64 with group norm."""
    maps = ("res5",) if one_level else ("res3", "res4", "res5")
    body = TimmBackbone(name, maps, weights=None, norm=norm)  # type: ignore[arg-type]
    return ChannelMapper(body, maps, DIM, 1 if one_level else 4, "" if one_level else "GN")


def focal_criterion(class_weight: float = 1.0) -> Criterion:
    return Criterion(HungarianMatcher(), FocalLoss(), class_weight)


def deformable_parts(**decoder: Any) -> dict[str, Any]:
    return {
        "position": SinePositionEncoding(DIM, offset=-0.5),
        "encoder": Encoder(DeformableEncoderLayer(**DENSE), ENCODERS),
        "decoder": Decoder(DeformableDecoderLayer(**DENSE), DECODERS, **decoder),
    }


def dense_parts(layer: DecoderLayer, activation: str = "relu", temperature: float = 1e4, **decoder: Any) -> dict:
    return {
        "position": SinePositionEncoding(DIM, temperature),
        "encoder": Encoder(EncoderLayer(**DENSE, activation=activation), ENCODERS),
        "decoder": Decoder(layer, DECODERS, norm=True, **decoder),
        "level_embed": False,
    }


def detr() -> dict[str, Any]:
    return {
        **dense_parts(DecoderLayer(**DENSE)),
        "queries": LearnedQueries(QUERIES, DIM),
        "criterion": Criterion(HungarianMatcher("softmax", 1.0), SoftmaxLoss()),
        "postprocess": BestClass(),
        "background_class": True,
        "box_prior": None,
    }


def conditional() -> dict[str, Any]:
    return {
        **dense_parts(ConditionalDecoderLayer(**DENSE), query_position=ConditionalPosition(DIM)),
        "queries": LearnedQueries(QUERIES, DIM, reference="mlp"),
    }


def dab() -> dict[str, Any]:
    parts = dense_parts(
        ConditionalDecoderLayer(**DENSE, activation="prelu"),
        "prelu",
        20.0,
        query_position=ModulatedAnchorPosition(DIM),
        refine=True,
        look_forward_twice=True,
    )
    parts["encoder"] = Encoder(EncoderLayer(**DENSE, activation="prelu"), ENCODERS, scale_position=True)
    return {**parts, "queries": AnchorQueries(QUERIES, DIM)}


def deformable() -> dict[str, Any]:
    queries = LearnedQueries(QUERIES, DIM, content="learned", reference="linear")
    return {**deformable_parts(), "queries": queries, "box_prior": -2.0}


def deformable_refine() -> dict[str, Any]:
    queries = LearnedQueries(QUERIES, DIM, content="learned", reference="linear")
    return {**deformable_parts(refine=True), "queries": queries, "share_heads": False}


def deformable_two_stage() -> dict[str, Any]:
    queries = TwoStageQueries(CLASSES, QUERIES, DIM, "proposal", "proposal", "first", "all")
    return {**deformable_parts(refine=True), "queries": queries, "share_heads": False}


def deformable_pp() -> dict[str, Any]:
    queries = TwoStageQueries(CLASSES, QUERIES, DIM, "learned", "proposal", "first", "all")
    parts = deformable_parts(refine=True, look_forward_twice=True)
    return {**parts, "queries": queries, "share_heads": False}


def dn_dab_deformable() -> dict[str, Any]:
    position = AnchorPosition(DIM, scale_by_content=True)
    return {
        **deformable_parts(query_position=position, refine=True),
        "queries": AnchorQueries(QUERIES, DIM, "learned", indicator=True),
        "denoising": Denoising(
            CLASSES, DIM, num_groups=2, label_noise=0.2, box_noise=0.4, contrastive=False, indicator=True
        ),
        "share_heads": False,
    }


def dino() -> dict[str, Any]:
    position = AnchorPosition(DIM)
    return {
        **deformable_parts(query_position=position, refine=True, look_forward_twice=True, norm=True),
        "queries": TwoStageQueries(CLASSES, QUERIES, DIM),
        "denoising": Denoising(CLASSES, DIM, num_queries=6),
    }


MEMBERS = {
    f.__name__: f
    for f in (
        detr,
        conditional,
        dab,
        deformable,
        deformable_refine,
        deformable_two_stage,
        deformable_pp,
        dn_dab_deformable,
        dino,
    )
}
ONE_LEVEL = ("detr", "conditional", "dab")


def build(member: str, backbone: nn.Module | None = None, seed: int = 0, **changes: Any) -> DETR:
    """A member with random weights; `changes` replace arguments of DETR."""
    torch.manual_seed(seed)
    parts = {"criterion": focal_criterion(), "postprocess": TopK(10), **MEMBERS[member](), **changes}
    if backbone is None:
        backbone = backbone_of(member in ONE_LEVEL)
    return DETR(backbone=backbone, num_classes=CLASSES, dim=DIM, **parts)


def batch(
    sizes: Sequence[tuple[int, int]] = ((48, 64), (64, 40)), counts: Sequence[int] = (3, 1), seed: int = 0
) -> list[dict[str, Any]]:
    """Random images of (height, width) with so many random objects each; the originals are twice as large."""
    g = torch.Generator().manual_seed(seed)
    inputs = []
    for i, ((h, w), n) in enumerate(zip(sizes, counts)):
        low = torch.rand(n, 2, generator=g) * torch.tensor([w, h]) * 0.5
        size = (torch.rand(n, 2, generator=g) * 0.4 + 0.05) * torch.tensor([w, h])
        instances = Instances((h, w))
        instances.gt_boxes = Boxes(torch.cat((low, low + size), dim=1))
        instances.gt_classes = torch.randint(0, CLASSES, (n,), generator=g)
        image = torch.randint(0, 256, (3, h, w), generator=g).to(torch.uint8)
        inputs.append(
            {
                "image": image,
                "height": 2 * h,
                "width": 2 * w,
                "image_id": 100 + i,
                "file_name": f"{i}.jpg",
                "instances": instances,
            }
        )
    return inputs
