"""Table 6: Co-DINO++ ViT-L on LVIS from Objects365: FedLoss, 1536 pixel canvas, 900 queries, 16 epochs."""

from detectron2.config import LazyCall as L

from polydet.data import class_image_counts

from .common.lsj import lsj
from .table5_co_dino_vit_l_o365_coco_12ep import dataloader, lr_multiplier, model, optimizer, train

lsj(dataloader, 1536)
dataloader.train.datasets = ["lvis_v1_train"]
dataloader.test_datasets = ["lvis_v1_val", "lvis_v1_minival"]
model.class_counts = L(class_image_counts)(name="lvis_v1_train")
model.backbone.bottom_up.update(window=16, global_blocks=[2, 5, 8, 11, 14, 17, 20, 23], drop_path_rate=0.3, canvas=1536)
model.heads = ["faster_rcnn", "atss"]  # two linear layers, boxes by class
model.queries.num_queries = 900
model.tta = None
optimizer.weight_decay = 0.05
optimizer.params.update(layer_decay=1.0, weight_decay_norm=None, weight_decay_bias=None)
optimizer.params.lr_factors = {r"^backbone\.bottom_up\.": 0.1}
lr_multiplier.milestones = [9, 15]
train.max_epochs = 16.0
train.ema.enabled = False
