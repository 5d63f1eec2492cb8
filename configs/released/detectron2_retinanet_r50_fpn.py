"""RetinaNet R50-FPN of Detectron2's model zoo: 38.7 AP on COCO val (R101: stages.depth=101, 40.4)."""

from ..common.detectron2_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.detectron2_retinanet import model

optimizer.lr = 0.01
