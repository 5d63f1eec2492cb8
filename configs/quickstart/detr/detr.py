from ...common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ...common.models.detr import model

shrink(model)
train.max_iter = 1000  # dense attention learns slowly
train.output_dir = "./output/quickstart_detr"
