"""Table 5: Co-DINO ViT-L on COCO from Objects365: short side 480 to 1536, 12 epochs, box voting."""

from detectron2.config import LazyCall as L

from codetr import BoxVotingTTA
from polydet.data import get_card
from polydet.data.augmentations import resize_shortest_edge

from .pretrain_co_dino_vit_l_o365_26ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["coco_2017_train"]
dataloader.test_datasets = ["coco_2017_val"]
dataloader.train.total_batch_size = train.reference_batch_size = 64
dataloader.train.mapper.augmentations.update(short=[480, 1536], max_size=2400)
dataloader.test.mapper.augmentations = L(resize_shortest_edge)(short=1280, max_size=2048, flip=False)
model.denoising.num_queries = 300
model.tta = L(BoxVotingTTA)(short_sides=[960, 1120, 1280, 1440, 1600], max_size=2400)
optimizer.lr = 5e-5
lr_multiplier.milestones = [7]
train.max_epochs = 12.0
train.ema.update(enabled=True, decay=0.9999, exponential_steps=2000.0)
train.init_checkpoint = train.output_dir + "/model_final.pth"
train.init.class_names = list(get_card("objects365_v2_train").classes)
train.output_dir = "./output/codetr/table5_co_dino_vit_l_o365_coco_12ep"
