"""Faster R-CNN R50-FPN of Detectron2's model zoo: 40.2 AP on COCO val (R101: stages.depth=101, 42.0)."""

from ..common.detectron2_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.detectron2_faster_rcnn import model
