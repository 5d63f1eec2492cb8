"""Table 2: DINO with 100 queries fine-tuned from its Objects365 weights."""

from polydet.data import label_space_of

from .pretrain_dino_r50_o365_4ep import dataloader as pretraining
from .pretrain_dino_r50_o365_4ep import train as pretrained
from .table2_dino_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = f"{pretrained.output_dir}/model_final.pth"
train.init.class_names = list(label_space_of(list(pretraining.train.datasets)).names)
