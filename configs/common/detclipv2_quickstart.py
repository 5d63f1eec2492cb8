"""DetCLIPv2 at quickstart size: boxes, phrases and captions of ShapeWorld, two CPU cores."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.modeling import FPN

from detclipv2 import CaptionConcepts, ConceptDictionary, DetectionConcepts, GroundingConcepts
from polydet.data import DetectionMapper, build_test_loader
from polydet.data.augmentations import resize_shortest_edge
from polydet.data.mixed import build_mixed_loader
from polydet.text import FrozenTextTower, MiniLMEncoder

from .models.detclipv2 import model
from .optim import adamw as optimizer
from .schedules import cosine as lr_multiplier
from .train import train

_negatives = ["circle", "ring", "square", "rectangle", "triangle", "star", "hexagon", "oval", "house", "dog", "tree"]
_boxes = L(DetectionMapper)(is_train=True, augmentations=L(resize_shortest_edge)(short=128, max_size=256))
dataloader = dict(
    train=L(build_mixed_loader)(
        datasets=["shapes_coco_train", "shapes_phrases_train", "shapes_captions_train"],
        sources=dict(
            detection=dict(
                datasets=["shapes_coco_train"],
                mapper=L(DetectionConcepts)(mapper=_boxes, datasets="${..datasets}", num_concepts=150),
                total_batch_size=8,
                num_workers=1,
                batches_per_epoch=6,
            ),
            grounding=dict(
                datasets=["shapes_phrases_train"],
                mapper=L(GroundingConcepts)(
                    mapper=_boxes, dictionary=L(ConceptDictionary)(names=_negatives), num_concepts=100
                ),
                total_batch_size=8,
                num_workers=1,
                batches_per_epoch=1,
            ),
            pairs=dict(
                datasets=["shapes_captions_train"],
                mapper=L(CaptionConcepts)(
                    mapper=L(DetectionMapper)(
                        is_train=True, augmentations=[L(T.Resize)(shape=(96, 116)), L(T.RandomFlip)()]
                    ),
                    max_concepts=8,
                ),
                total_batch_size=16,
                num_workers=1,
                filter_empty=False,
                batches_per_epoch=3,
            ),
        ),
        total_batch_size=8,
    ),
    test_datasets=["shapes_coco_val", "shapes_novel_val"],
    test=L(build_test_loader)(
        dataset="",
        mapper=L(DetectionMapper)(
            is_train=False, augmentations=L(resize_shortest_edge)(short=128, max_size=256, flip=False)
        ),
        batch_size=10,
    ),
)

model.backbone = L(FPN)(bottom_up=model.backbone.bottom_up, in_features=["res3", "res4", "res5"], out_channels=64)
model.backbone.bottom_up.update(
    name="resnet18",
    weights=None,
    norm="frozen",
    freeze_at=2,
    drop_path_rate=0.0,
    checkpointing=False,
    out_norm=False,
    model_kwargs=dict(channels=(32, 64, 128, 256)),
)
model.head.update(dim=384, strides=[8, 16, 32], num_convs=1, anchor_scale=4.0, similarity="cosine")
model.head.inference.update(max_detections=50, topk_per_level=200)
model.text_tower = L(FrozenTextTower)(encoder=L(MiniLMEncoder)())
model.definitions = None
model.checkpointing = False
model.selection.k = 20
model.pairs.temperature = 0.1  # of cosines; the paper's 0.5 leaves the loss flat in so few steps
model.pairs_weight = 0.5  # the paper's 0.1 is for two hundred times the batch and steps

optimizer.lr = 1.5e-3
lr_multiplier.warmup_iters = 30
train.max_iter = 1200
train.clip_grad.update(kind="norm", value=1.0)
train.ddp.find_unused_parameters = True
