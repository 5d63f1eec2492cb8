from ...common.detr_quickstart import one_level, train
from ...common.models.conditional_detr import model as _model

train.output_dir = "./output/quickstart_conditional_detr"
stages = one_level(_model, max_iter=5000)
