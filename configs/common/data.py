"""Loaders: a row names its datasets, batch, sampler and augmentations; everything else is here."""

from detectron2.config import LazyCall as L

from polydet.data import DetectionMapper, UniformSampler, build_test_loader, build_train_loader
from polydet.data.augmentations import detr_multi_scale, large_scale_jitter, resize_shortest_edge

# training augmentations
lsj = L(large_scale_jitter)(size=640, scale=[0.1, 2.0])  # ScaleDet, Co-DETR++
detr = L(detr_multi_scale)()  # the DETR family
multi_scale = L(resize_shortest_edge)(short=[640, 672, 704, 736, 768, 800], max_size=1333)  # Detectron2's
# test
resize_800 = L(resize_shortest_edge)(short=800, max_size=1333, flip=False)

dataloader = dict(
    train=L(build_train_loader)(
        datasets=["coco_2017_train"],
        mapper=L(DetectionMapper)(is_train=True, augmentations=multi_scale),
        total_batch_size=16,
        sampler=L(UniformSampler)(),
        merge="none",
        aspect_ratio_grouping=False,
        filter_empty=True,
        num_workers=4,
    ),
    test=L(build_test_loader)(
        dataset="",
        mapper=L(DetectionMapper)(is_train=False, augmentations=resize_800),
        num_workers=4,
    ),
    test_datasets=["coco_2017_val"],
)
