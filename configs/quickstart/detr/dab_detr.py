from ...common.detr_quickstart import one_level, train
from ...common.models.dab_detr import model as _model

train.output_dir = "./output/quickstart_dab_detr"
stages = one_level(_model, max_iter=5000)
