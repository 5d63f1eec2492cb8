from ...common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ...common.models.deformable_detr_pp import model

shrink(model)
train.output_dir = "./output/quickstart_deformable_detr_pp"
