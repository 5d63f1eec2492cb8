"""torchvision's Faster R-CNN with FPN on a backbone of ours: the peer of `real_photos.py`, with data and metric of its
own (PIL, torchvision's transforms, pycocotools)."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from polydet.backbones import TimmBackbone

# as wide and as large as `finetune/faster_rcnn` at speed=fast; sizes of images and anchors may follow a set by --set
SETTINGS: dict[str, Any] = dict(
    steps=75,
    batch=4,
    lr=1e-3,
    weight_decay=0.05,
    warmup=15,
    clip=1.0,
    short=240,
    long=400,
    channels=64,
    head=256,
    rois=64,
    proposals=200,
    anchors=[16, 32, 64, 128, 256],
    freeze_at=2,
)


class Body(nn.Module):
    """The backbone's four maps through torchvision's FPN."""

    def __init__(self, channels: int, freeze_at: int) -> None:
        super().__init__()
        features = ("res2", "res3", "res4", "res5")
        self.bottom_up = TimmBackbone(
            "tf_efficientnet_lite0", features, weights="package:tf_efficientnet_lite0", freeze_at=freeze_at
        )
        inputs = [shape.channels for shape in self.bottom_up.output_shape().values()]
        self.fpn = FeaturePyramidNetwork(inputs, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.bottom_up(image).values()
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))  # the names that torchvision pools from


def build(num_classes: int, s: dict[str, Any]) -> FasterRCNN:
    body = Body(s["channels"], s["freeze_at"])
    anchors = AnchorGenerator(tuple((size,) for size in s["anchors"]), ((0.5, 1.0, 2.0),) * 5)
    model = FasterRCNN(
        body,
        num_classes + 1,
        min_size=s["short"],
        max_size=s["long"],
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        rpn_anchor_generator=anchors,
        box_batch_size_per_image=s["rois"],
        rpn_pre_nms_top_n_train=2 * s["proposals"],
        rpn_post_nms_top_n_train=s["proposals"],
    )
    if s["head"] != 1024:
        model.roi_heads.box_head = TwoMLPHead(s["channels"] * 49, s["head"])
        model.roi_heads.box_predictor = type(model.roi_heads.box_predictor)(s["head"], num_classes + 1)
    return model


class Photographs:
    """A COCO json -> images in [0, 1] and torchvision's targets, classes from 1."""

    def __init__(self, file: Path, images: Path) -> None:
        document = json.loads(file.read_text())
        self.images = list(document["images"])
        self.folder = images
        self.ids = [c["id"] for c in document["categories"]]
        self.boxes: dict[int, list[tuple[list[float], int]]] = {}
        for a in document["annotations"]:
            x, y, w, h = a["bbox"]
            box = ([x, y, x + w, y + h], self.ids.index(a["category_id"]) + 1)
            self.boxes.setdefault(a["image_id"], []).append(box)

    def read(self, index: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        record = self.images[index]
        with Image.open(self.folder / record["file_name"]) as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).float() / 255
        mine = self.boxes.get(record["id"], [])
        boxes = torch.tensor([b for b, _ in mine], dtype=torch.float32).reshape(-1, 4)
        if flip:
            image = image.flip(2)
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": torch.tensor([c for _, c in mine], dtype=torch.int64)}


def train(train_file: Path, val_file: Path, images: Path, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """One training -> metrics from 0 to 100, CPU seconds of the steps, their number."""
    s = {**SETTINGS, **overrides}
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    data = Photographs(train_file, images)
    model = build(len(data.ids), s).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=s["lr"], weight_decay=s["weight_decay"], fused=True)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / s["warmup"]) * 0.5 * (1 + math.cos(math.pi * step / s["steps"]))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    usable = [i for i, x in enumerate(data.images) if data.boxes.get(x["id"])]
    order: list[int] = []
    start = time.process_time()
    for _ in range(s["steps"]):
        while len(order) < s["batch"]:
            order += random.permutation(usable).tolist()
        batch = [data.read(i, random.random() < 0.5) for i in order[: s["batch"]]]
        del order[: s["batch"]]
        losses = model([image for image, _ in batch], [target for _, target in batch])
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, s["clip"])
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - start
    return {"metrics": evaluate(model, val_file, images), "cpu_seconds": seconds, "steps": s["steps"]}


@torch.no_grad()
def evaluate(model: FasterRCNN, file: Path, images: Path) -> dict[str, float]:
    data = Photographs(file, images)
    model.eval()
    found = []
    for index, record in enumerate(data.images):
        output = model([data.read(index, False)[0]])[0]
        for box, score, label in zip(output["boxes"].tolist(), output["scores"].tolist(), output["labels"].tolist()):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found.append({"image_id": record["id"], "category_id": data.ids[label - 1], "bbox": xywh, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        scorer = COCOeval(truth, truth.loadRes(found), "bbox") if found else None
        if scorer is None:
            return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return {name: 100 * float(scorer.stats[i]) for i, name in enumerate(("AP", "AP50", "AP75"))}
