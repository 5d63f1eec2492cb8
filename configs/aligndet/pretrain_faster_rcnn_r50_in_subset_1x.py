"""Pre-training of Faster R-CNN on a subset of ImageNet with as many proposals as COCO (table 8)."""

from .pretrain_faster_rcnn_r50_1x import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.update(datasets=["imagenet_subset_proposals"], proposals=None)
train.output_dir = "./output/aligndet/pretrain_faster_rcnn_r50_in_subset_1x"
