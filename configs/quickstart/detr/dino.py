from ...common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ...common.models.dino import model

shrink(model)
train.output_dir = "./output/quickstart_dino"
