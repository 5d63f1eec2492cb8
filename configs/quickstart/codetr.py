"""Co-Deformable-DETR++ with ATSS (K = 1) on ShapeWorld: from scratch, in five minutes on two CPU cores."""

from ..common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ..common.models.co_deformable_detr_pp import model

shrink(model)
model.heads = [dict(name="atss", options=dict(channels=64))]

optimizer.lr = 8e-4
train.max_iter = 350
train.output_dir = "./output/quickstart_codetr"
