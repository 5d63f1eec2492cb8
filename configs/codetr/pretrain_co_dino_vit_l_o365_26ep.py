"""Co-DINO ViT-L on Objects365: short side 480 to 1024, 26 epochs, batch 224 (the start of tables 5 and 6)."""

from detectron2.config import LazyCall as L

from polydet.data.augmentations import resize_shortest_edge

from ..common.detr_training import dataloader, lr_multiplier, optimizer, train
from ..common.models.co_dino_vit import model
from .common.vit import layer_decay

dataloader.train.datasets = ["objects365_v2_train"]
dataloader.test_datasets = ["objects365_v2_val"]
dataloader.train.total_batch_size = train.reference_batch_size = 224
dataloader.train.mapper.augmentations = L(resize_shortest_edge)(short=[480, 1024], max_size=1280, style="range")
model.denoising.num_queries = 1000
layer_decay(optimizer)
optimizer.update(lr=2.5e-4, weight_decay=0.01)
lr_multiplier.update(milestones=[24], warmup_iters=500)
train.max_epochs = 26.0
train.output_dir = "./output/codetr/pretrain_co_dino_vit_l_o365_26ep"
