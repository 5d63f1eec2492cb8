"""A small DetCLIPv2 and its inputs."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, Instances
from torch import nn

from detclipv2 import AlignmentHead, DetCLIPv2
from polydet.text import FrozenTextTower, TextTower

DIM, CHANNELS, STRIDES = 12, 32, (8, 16, 32)


class TinyBackbone(Backbone):
    def __init__(self):
        super().__init__()
        self._out_features = [f"p{i}" for i in range(len(STRIDES))]
        self._out_feature_channels = dict.fromkeys(self._out_features, CHANNELS)
        self._out_feature_strides = dict(zip(self._out_features, STRIDES))
        self.stem = nn.Conv2d(3, CHANNELS, 8, stride=8)
        self.down = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1) for _ in STRIDES[1:])

    def forward(self, image):
        maps = [self.stem(image).relu()]
        for layer in self.down:
            maps.append(layer(maps[-1]).relu())
        return dict(zip(self._out_features, maps))

    def output_shape(self):
        return {f: ShapeSpec(channels=CHANNELS, stride=self._out_feature_strides[f]) for f in self._out_features}

    @property
    def size_divisibility(self):
        return 32


class Letters:
    """Frozen encoder: counts of letters."""

    id, dim = "test:letters", DIM

    def __init__(self):
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        rows = torch.full((len(texts), DIM), 0.1)
        for row, text in zip(rows, texts):
            for letter in text:
                row[ord(letter) % DIM] += 1
        return nn.functional.normalize(rows, dim=1)


class TrainedLetters(TextTower):
    """The same with a weight to train."""

    id, dim = "trained:letters", DIM

    def __init__(self):
        super().__init__()
        self.encoder = Letters()
        self.weight = nn.Parameter(torch.eye(DIM))

    def forward(self, texts):
        return nn.functional.normalize(self.encoder.encode(texts) @ self.weight, dim=-1)


def make_model(tower=None, deformable=True, similarity="bias", head=None, **kw):
    torch.manual_seed(0)
    tower = tower or FrozenTextTower(Letters())
    settings = {"channels": CHANNELS, "num_convs": 1, **(head or {})}
    built = AlignmentHead(CHANNELS, DIM, STRIDES, deformable=deformable, similarity=similarity, **settings)
    return DetCLIPv2(TinyBackbone(), built, tower, **kw)


def picture(seed=0, height=64, width=96):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def boxed(concepts, boxes, carried, task="detection", seed=0, height=64, width=96):
    """One training item; `carried` is the concepts' indices of each box."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    marks = torch.zeros(len(boxes), len(concepts), dtype=torch.bool)
    for box, indices in enumerate(carried):
        marks[box, indices] = True
    instances.gt_concepts = marks
    return {
        "image": picture(seed, height, width),
        "height": height,
        "width": width,
        "instances": instances,
        "concepts": list(concepts),
        "task": task,
    }


def detection_batch(task="detection"):
    return [
        boxed(["cat", "dog", "bird"], [[4, 4, 40, 40], [50, 10, 90, 60]], [[0], [1, 2]], task, 0),
        boxed(["dog", "fish"], [[10, 10, 60, 60]], [[1]], task, 1, 96, 64),
    ]


def captioned(concepts, task="pairs", seed=0, size=64):
    return {
        "image": picture(seed, size, size),
        "height": size,
        "width": size,
        "concepts": list(concepts),
        "task": task,
    }


def caption_batch(task="pairs"):
    if task == "classification":
        return [captioned([name], task, i) for i, name in enumerate(["cat", "dog", "cat"])]
    captions = [["a cat on a mat", "cat", "mat"], ["the dog"], ["bird and fish", "bird", "fish"]]
    return [captioned(names, task, i) for i, names in enumerate(captions)]
