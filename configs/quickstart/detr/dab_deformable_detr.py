from ...common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ...common.models.dab_deformable_detr import model

shrink(model)
train.output_dir = "./output/quickstart_dab_deformable_detr"
