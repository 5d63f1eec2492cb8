from ...common.detr_quickstart import one_level, train
from ...common.models.detr import model as _model

train.output_dir = "./output/quickstart_detr"
stages = one_level(_model, max_iter=6000, num_queries=40)
