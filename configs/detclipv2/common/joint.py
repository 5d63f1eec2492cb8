"""Joint training on O365, GoldG and CC15M: what every row of DetCLIPv2 starts from."""

from detectron2.config import LazyCall as L

from detclipv2 import CaptionConcepts, ConceptDictionary, DetectionConcepts, GroundingConcepts, NounPhrases
from polydet.data import DetectionMapper, SubsetSampler, build_mixed_loader
from polydet.data.augmentations import fixed_resize, resize_shortest_edge

from ...common.data import dataloader
from ...common.models.detclipv2 import model
from ...common.optim import adamw as optimizer
from ...common.schedules import cosine as lr_multiplier
from ...common.train import train

_boxes = L(DetectionMapper)(
    is_train=True,
    augmentations=L(resize_shortest_edge)(short=[480, 560, 640, 720, 800], max_size=1333),
)
_pictures = L(DetectionMapper)(is_train=True, augmentations=L(fixed_resize)(height=320, width=320, flip=True))
_detection = dict(
    datasets=["objects365_v2_train"],
    mapper=L(DetectionConcepts)(mapper=_boxes, datasets="${..datasets}", num_concepts=150),
    sampler=L(SubsetSampler)(count=660000),
    total_batch_size=128,
)
_grounding = dict(
    datasets=["goldg_flickr_train", "goldg_gqa_train"],
    mapper=L(GroundingConcepts)(
        mapper=_boxes,
        dictionary=L(ConceptDictionary)(path="${oc.env:POLYDET_CONCEPTS,datasets/concepts.tsv}"),
        num_concepts=100,
    ),
    total_batch_size=128,
)
_pairs = dict(
    datasets=["cc3m_train", "cc12m_train"],
    mapper=L(CaptionConcepts)(mapper=_pictures, phrases=L(NounPhrases)(parser="auto"), max_concepts=8),
    total_batch_size=6144,
    filter_empty=False,
    max_skipped=100000,
    num_workers=8,
)
dataloader.train = L(build_mixed_loader)(
    datasets=["objects365_v2_train", "goldg_flickr_train", "goldg_gqa_train", "cc3m_train", "cc12m_train"],
    sources=dict(detection=_detection, grounding=_grounding, pairs=_pairs),
    total_batch_size=128,
)
dataloader.test_datasets = ["lvis_v1_minival", "lvis_v1_val"]
dataloader.evaluators = dict(lvis_v1_minival="lvis_fixed", lvis_v1_val="lvis_fixed")

optimizer.update(lr=2.8e-4, weight_decay=0.05)
optimizer.params.update(
    lr_factors={r"^text_tower\.": 0.1},
    weight_decay_norm=0.0,
    weight_decay_factors={"relative_position_bias_table|positional_embedding": 0.0},
)
lr_multiplier.warmup_iters = 1000
train.max_epochs = 12
train.amp.dtype = "bfloat16"
train.clip_grad.update(kind="norm", value=1.0)
train.ddp.find_unused_parameters = True  # image-text pairs train no box predictor
