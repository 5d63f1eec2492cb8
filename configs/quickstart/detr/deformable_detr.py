from ...common.detr_quickstart import from_crops, shrink, train
from ...common.models.deformable_detr import model as _model

shrink(_model).decoder.num_layers = 6  # boxes are not refined, so what to look at is found layer by layer
train.output_dir = "./output/quickstart_deformable_detr"
stages = from_crops(_model, max_iter=1000)
