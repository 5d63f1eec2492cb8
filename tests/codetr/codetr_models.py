"""Small members of the family, with and without collaborators."""

import torch
from codetr_literal import instances, random_boxes
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn

from codetr import CoDETR
from polydet.detr import (
    AnchorPosition,
    AnchorQueries,
    ConditionalDecoderLayer,
    ConditionalPosition,
    Criterion,
    Decoder,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    Denoising,
    Encoder,
    EncoderLayer,
    FocalLoss,
    HungarianMatcher,
    LearnedQueries,
    ModulatedAnchorPosition,
    QualityFocalLoss,
    TopK,
    TwoStageQueries,
)
from polydet.layers import SinePositionEncoding

DIM, CLASSES, LAYERS = 32, 3, 2
HEADS = [{"name": "faster_rcnn", "options": {"fc_dims": (32,)}}, {"name": "atss", "options": {"channels": 32}}]


class Plain(Backbone):
    """A few convolutions."""

    def __init__(self, strides):
        super().__init__()
        self.strides = strides
        self.stem = nn.Conv2d(3, DIM, strides[0], stride=strides[0])
        self.down = nn.ModuleList(nn.Conv2d(DIM, DIM, 3, stride=2, padding=1) for _ in strides[1:])

    def forward(self, image):
        maps = [self.stem(image)]
        for conv in self.down:
            maps.append(conv(maps[-1]))
        return {f"p{s}": m for s, m in zip(self.strides, maps)}

    def output_shape(self):
        return {f"p{s}": ShapeSpec(channels=DIM, stride=s) for s in self.strides}


def _deformable(levels, refine=False, position=None, norm=False):
    encoder = Encoder(DeformableEncoderLayer(DIM, 4, 64, 0.0, num_levels=levels), 2)
    layer = DeformableDecoderLayer(DIM, 4, 64, 0.0, num_levels=levels)
    return encoder, Decoder(layer, LAYERS, position, refine, refine, norm)


def parts(kind):
    """Backbone strides, encoder, queries, decoder and further arguments."""
    if kind in ("conditional", "dab"):
        encoder = Encoder(EncoderLayer(DIM, 4, 64, 0.0), 2)
        position = ConditionalPosition(DIM) if kind == "conditional" else ModulatedAnchorPosition(DIM)
        decoder = Decoder(ConditionalDecoderLayer(DIM, 4, 64, 0.0), LAYERS, position, refine=kind == "dab", norm=True)
        queries = LearnedQueries(20, DIM, reference="mlp") if kind == "conditional" else AnchorQueries(20, DIM)
        return (32,), encoder, queries, decoder, {"level_embed": False}
    if kind == "deformable":
        encoder, decoder = _deformable(2)
        queries = LearnedQueries(20, DIM, "learned", "linear")
        return (8, 16), encoder, queries, decoder, {"share_heads": False, "box_prior": -2.0}
    if kind == "deformable_pp":
        encoder, decoder = _deformable(2, refine=True)
        queries = TwoStageQueries(CLASSES, 20, DIM, content="learned", position="proposal")
        return (8, 16), encoder, queries, decoder, {"share_heads": False}
    if kind == "dino":
        encoder, decoder = _deformable(2, refine=True, position=AnchorPosition(DIM), norm=True)
        queries = TwoStageQueries(
            CLASSES, 20, DIM, content="learned", position="anchor", rank="max", supervise="selected"
        )
        return (8, 16), encoder, queries, decoder, {"denoising": Denoising(CLASSES, DIM, num_queries=8)}
    encoder = Encoder(EncoderLayer(DIM, 4, 64, 0.0), 2)
    from polydet.detr import DecoderLayer

    return (32,), encoder, LearnedQueries(20, DIM), Decoder(DecoderLayer(DIM, 4, 64, 0.0), LAYERS), {}


def base_arguments(kind, quality=False):
    """Arguments that `DETR` and `CoDETR` share; the same numbers for the same kind."""
    torch.manual_seed(0)
    strides, encoder, queries, decoder, extra = parts(kind)
    matcher = HungarianMatcher()
    loss = QualityFocalLoss() if quality else FocalLoss()
    return dict(
        backbone=Plain(strides),
        position=SinePositionEncoding(DIM),
        encoder=encoder,
        queries=queries,
        decoder=decoder,
        criterion=Criterion(matcher, loss, 2.0),
        postprocess=TopK(10),
        num_classes=CLASSES,
        dim=DIM,
        **extra,
    )


def codetr(kind="deformable", heads=HEADS, **kwargs):
    return CoDETR(**base_arguments(kind), heads=heads, **kwargs)


def batch(seed=0, counts=(3, 2), sizes=((96, 96), (80, 96))):
    generator = torch.Generator().manual_seed(seed)
    result = []
    for i, (count, size) in enumerate(zip(counts, sizes)):
        boxes = random_boxes(count, float(min(size)), generator, 24.0)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        target = instances(boxes, torch.arange(count) % CLASSES, size)
        result.append({"image": image, "instances": target, "height": size[0] * 2, "width": size[1], "image_id": i})
    return result
