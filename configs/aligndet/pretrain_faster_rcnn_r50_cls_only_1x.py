"""Pre-training of Faster R-CNN by the contrastive and RPN matching losses only (table 10)."""

from .common.recipe import pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "faster_rcnn", tasks=("classification",))
