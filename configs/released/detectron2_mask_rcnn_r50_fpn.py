"""Mask R-CNN R50-FPN of Detectron2's model zoo: 41.0 AP on COCO val (R101: stages.depth=101, 42.9)."""

from ..common.detectron2_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.detectron2_mask_rcnn import model

dataloader.train.mapper.use_masks = True
