from ...common.detr_quickstart import one_level, train
from ...common.models.dab_detr import model as _model

_model.criterion.class_weight = 2.0  # boxes come early here, classes late
train.output_dir = "./output/quickstart_dab_detr"
stages = one_level(_model, max_iter=5000)
