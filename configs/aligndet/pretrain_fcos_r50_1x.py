"""Section 4.1: box-domain pre-training of FCOS R50, 12 epochs of COCO without labels."""

from .common.recipe import pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "fcos")
