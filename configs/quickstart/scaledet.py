"""ScaleDet on ShapeWorld: two datasets with different label spaces at once, from scratch, on two CPU cores."""

from detectron2.config import LazyCall as L

from polydet.text import MiniLMEncoder

from ..common.models.centernet2 import model
from ..common.optim import adamw as optimizer
from ..common.schedules import cosine as lr_multiplier
from ..common.shapeworld import dataloader, train

dataloader.train.datasets = ["shapes_coco_train", "shapes_lvis_train"]
dataloader.test.batch_size = 8
dataloader.test_datasets = ["shapes_coco_val", "shapes_lvis_val", "shapes_wild_val", "shapes_wild_shuffled_val"]

model.backbone.bottom_up.update(name="resnet18", weights=None, norm="train")
model.backbone.out_channels = 64
model.proposal_generator.head.num_convs = 2
model.proposal_generator.sizes_of_interest = [(0, 20), (16, 40), (32, 80), (64, 160), (128, 1e6)]
model.proposal_generator.pre_nms_topk = (200, 100)
model.proposal_generator.post_nms_topk = (100, 50)
model.roi_heads.update(pooler_resolution=5, fc_dims=[256, 256], batch_size_per_image=32, use_bias=-4.6)
model.roi_heads.label_loss.hl_scope = "own_dataset"  # nearly every shape has a name in both label spaces
model.text_encoder = L(MiniLMEncoder)()
model.templates = "a"

optimizer.lr = 1e-3
lr_multiplier.warmup_iters = 30
train.max_iter = 430
train.clip_grad.update(kind="norm", value=1.0)
train.output_dir = "./output/quickstart_scaledet"
