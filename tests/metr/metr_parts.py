"""Small parts for the tests of METR: an encoder of texts without weights, a backbone of a few convolutions, a model."""

import zlib

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, Instances
from torch import nn

from metr import METR, CategoryExtraction, CategoryQuerySource, CategoryScores, GroupMatcher, LanguageDenoising
from polydet.detr import (
    AnchorPosition,
    Criterion,
    Decoder,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    Encoder,
    FocalLoss,
)
from polydet.layers import SinePositionEncoding
from polydet.text import LabelSpace

DIM = 32
COCO = ["person", "frisbee", "bottle", "cup"]
FACES = ["face"]


class HashEncoder:
    """A text encoder that draws a direction from the text's checksum."""

    dim = 12

    def __init__(self, name="hash"):
        self.id = name

    def encode(self, texts):
        rows = []
        for text in texts:
            generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
            rows.append(torch.randn(self.dim, generator=generator))
        return F.normalize(torch.stack(rows), dim=-1)


class TinyBackbone(Backbone):
    """Two maps of DIM channels at strides 8 and 16."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 8, 8)
        self.down = nn.Conv2d(DIM, DIM, 2, 2)

    def forward(self, image):
        p3 = self.stem(image).relu()
        return {"p3": p3, "p4": self.down(p3)}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=DIM, stride=8), "p4": ShapeSpec(channels=DIM, stride=16)}

    @property
    def size_divisibility(self):
        return 16


def tiny_metr(
    names=None, *, cem=True, num_queries=12, top_k=3, allocation="uniform", layers=2, encoder=None, **options
):
    """A METR of a few thousand parameters; `names` is classes by dataset."""
    space = LabelSpace(names or {"coco": COCO, "faces": FACES}, merge="name")
    sampling = {"num_levels": 2, "num_points": 2}
    parts = dict(
        backbone=TinyBackbone(),
        position=SinePositionEncoding(DIM),
        encoder=Encoder(DeformableEncoderLayer(DIM, 4, 64, 0.0, **sampling), 1),
        decoder=Decoder(
            DeformableDecoderLayer(DIM, 4, 64, 0.0, **sampling),
            layers,
            AnchorPosition(DIM),
            refine=True,
            look_forward_twice=True,
            norm=True,
        ),
        queries=CategoryQuerySource(num_queries, DIM, allocation),
        cem=CategoryExtraction(DIM, 2, 4, 64) if cem else None,
        denoising=LanguageDenoising(DIM, 10),
        criterion=Criterion(GroupMatcher(), FocalLoss()),
        postprocess=CategoryScores(num_queries),
        label_space=space,
        text_encoder=encoder or HashEncoder(),
        top_k=top_k,
        dim=DIM,
    )
    return METR(**{**parts, **options})


def make_input(boxes, labels, size=(64, 96), dataset="coco", seed=0, **extra):
    """A model input with ground truth; boxes xyxy in pixels."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    image = (torch.rand(3, *size, generator=generator) * 255).to(torch.uint8)
    return {
        "image": image,
        "height": size[0],
        "width": size[1],
        "image_id": seed,
        "file_name": f"{seed}.png",
        "dataset_name": dataset,
        "instances": instances,
        **extra,
    }


def make_batch():
    """Three images: objects of two datasets, of different sizes, one of them empty."""
    return [
        make_input([[5, 5, 30, 40], [40, 10, 80, 60], [50, 20, 70, 40]], [0, 2, 2]),
        make_input([[10, 10, 40, 40]], [4], (48, 64), "faces", 1),
        make_input([], [], (64, 64), seed=2),
    ]
