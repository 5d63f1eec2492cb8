import os
from inspect import signature
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from polydet.backbones import TimmBackbone, fpn_p3_p7
from polydet.text import LabelSpace, Vocabulary
from scaledet import CenterNetHead, CenterNetProposals, LabelLoss, ScaleDet, TextCascadeROIHeads

CLASSES = {"zoo": ("cat", "dog", "owl"), "farm": ("dog", "cow", "hen", "pig")}


class HashEncoder:
    """Deterministic stand-in for a text encoder: the embedding of a text depends on its characters only."""

    def __init__(self, dim=16, id="hash"):
        self.dim, self.id = dim, f"{id}:{dim}"

    def encode(self, texts):
        rows = []
        for text in texts:
            seed = sum((i + 1) * ord(c) for i, c in enumerate(text))
            rows.append(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)))
        return F.normalize(torch.stack(rows), dim=-1)


def make_embeddings(n=40, dim=32, duplicates=2, seed=0):
    """Unit rows around a common direction, as a text encoder gives them; the last rows repeat the first ones.

    With POLYDET_CLIP_TEXT naming a folder of ``.npy`` files, n real CLIP embeddings instead.
    """
    folder = os.environ.get("POLYDET_CLIP_TEXT")
    files = sorted(Path(folder).glob("*.npy")) if folder else []
    if files:
        rows = torch.from_numpy(np.concatenate([np.load(f) for f in files])).float()
        rows = rows[torch.linspace(0, len(rows) - 1, n).long()]
    else:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, dim, generator=generator) + torch.randn(dim, generator=generator)
    rows[n - duplicates :] = rows[:duplicates]
    return F.normalize(rows, dim=-1)


def build_model(classes=CLASSES, encoder=None, channels=64, fc=32, norm="train", **kwargs):
    encoder = encoder or HashEncoder()
    space = LabelSpace(classes)
    loss = {key: kwargs.pop(key) for key in list(kwargs) if key in signature(LabelLoss.__init__).parameters}
    roi_options = signature(TextCascadeROIHeads.__init__).parameters
    roi = {key: kwargs.pop(key) for key in list(kwargs) if key in roi_options}
    proposals = {key: kwargs.pop(key) for key in ("post_nms_topk",) if key in kwargs}
    torch.manual_seed(0)
    return ScaleDet(
        backbone=fpn_p3_p7(TimmBackbone("resnet10t", weights=None, norm=norm), channels),
        proposal_generator=CenterNetProposals(CenterNetHead(channels, 5, 1), **proposals),
        roi_heads=TextCascadeROIHeads(
            **{
                "label_loss": LabelLoss(**loss),
                "text_dim": encoder.dim,
                "in_channels": channels,
                "fc_dims": (fc,),
                "batch_size_per_image": 16,
                **roi,
            }
        ),
        vocabulary=Vocabulary.build(space.names, encoder, unique=False),
        label_space=space,
        text_encoder=encoder,
        **kwargs,
    )


def make_input(boxes=((10, 10, 50, 60), (30, 20, 90, 80)), classes=(0, 1), size=(96, 128), dataset="zoo", seed=0):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    return {
        "image": image,
        "height": size[0],
        "width": size[1],
        "image_id": seed,
        "file_name": f"{seed}.jpg",
        "dataset_name": dataset,
        "instances": instances,
    }
