"""Table 3, ScaleDet multiple: the datasets and the 8x schedule of UniDet, ResNet-50 of ImageNet-1k, SGD."""

from ..common.data import multi_scale, resize_800
from ..common.optim import sgd as optimizer
from ..common.schedules import step as lr_multiplier
from .table1_scaledet_r50_l_c_o365_oid import dataloader, model, train

dataloader.train.datasets = ["coco_2017_train", "objects365_v1_train", "openimages_v6_train"]
dataloader.train.total_batch_size = 16
dataloader.train.mapper.augmentations = multi_scale
dataloader.test.mapper.augmentations = resize_800
dataloader.test_datasets = ["coco_2017_val", "objects365_v1_val", "openimages_v6_val"]
model.backbone.bottom_up.update(name="resnet50.tv_in1k", weights="timm", freeze_at=2)
model.roi_heads.test_score_thresh = 1e-4
optimizer.lr = 0.01
optimizer.params.weight_decay_norm = 0.0
lr_multiplier.update(milestones=[660000, 700000], warmup_iters=4000, warmup_factor=0.00025)
train.amp.dtype = "float32"
train.update(max_iter=720000, reference_batch_size=16, output_dir="./output/scaledet/table3_r50_coco_o365_oid")
