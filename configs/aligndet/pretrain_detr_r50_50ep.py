"""Section 4.1: box-domain pre-training of DETR R50, 50 epochs of COCO without labels, 256 pseudo-classes."""

from .common.recipe import pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "detr")
