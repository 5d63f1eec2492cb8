"""METR on ShapeWorld: two datasets with different label spaces at once, from scratch, in five minutes on two cores."""

from detectron2.config import LazyCall as L

from polydet.text import MiniLMEncoder

from ..common.detr_quickstart import dataloader, lr_multiplier, optimizer, shrink, train
from ..common.models.metr import model

dataloader.train.update(datasets=["shapes_coco_train", "shapes_lvis_train"], merge="name")
dataloader.test_datasets = ["shapes_coco_val", "shapes_lvis_val"]

shrink(model, num_queries=100)
model.cem.ffn_dim = 256
model.top_k = 10
model.denoising.num_queries = 30
model.text_encoder = L(MiniLMEncoder)()
model.text_scale = 20.0  # about sqrt(D): see LanguageEmbeddings
model.mask_foreign = True
model.federated = "verified"

dataloader.test.batch_size = 10
dataloader.evaluators = dict(shapes_coco_val=["coco", "multilabel"], shapes_lvis_val=["lvis", "multilabel"])
optimizer.lr = 1e-3
dataloader.train.total_batch_size = 4  # more steps in the time
train.max_iter = 1000
train.output_dir = "./output/quickstart_metr"
