"""Table 5: METR fine-tuned from its OpenImages weights; words that COCO shares keep their rows."""

from polydet.data import label_space_of

from .pretrain_metr_r50_oimg_4ep import dataloader as pretraining
from .pretrain_metr_r50_oimg_4ep import train as pretrained
from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

model.on_vocabulary_mismatch = "transfer"
train.init_checkpoint = f"{pretrained.output_dir}/model_final.pth"
train.init.class_names = list(label_space_of(list(pretraining.train.datasets), "name").names)
