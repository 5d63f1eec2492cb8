from ...common.detr_quickstart import from_crops, shrink, train
from ...common.models.dab_deformable_detr import model as _model

shrink(_model).decoder.num_layers = 6
train.output_dir = "./output/quickstart_dab_deformable_detr"
stages = from_crops(_model, max_iter=800)
