"""Table 7 and supplement Table D, ScaleDet-R fine-tuned: one run a set, e.g. odinw.set=Aquarium."""

from detectron2.config import LazyCall as L

from polydet.engine.plateau import PlateauSchedule

from ..common.data import resize_800
from ..common.schedules import constant as lr_multiplier
from .table1_scaledet_r50_l_c_o365_oid import dataloader, model, optimizer, train

odinw = dict(set="AerialMaritimeDrone")  # a part of the card's name; see polydet.data.builtin.odinw
dataloader.train.update(datasets=["odinw_${odinw.set}_train"], total_batch_size=16)
dataloader.test.mapper.augmentations = resize_800
dataloader.test_datasets = ["odinw_${odinw.set}_val", "odinw_${odinw.set}_test"]
model.on_vocabulary_mismatch = "transfer"  # the labels of the set only
model.backbone.bottom_up.weights = None
model.roi_heads.label_loss.soft_weight = 0.0
optimizer.lr = 5e-5
train.update(max_epochs=200.0, eval_period_epochs=1, reference_batch_size=16)
train.best_metric = "odinw_${odinw.set}_val/bbox/AP"
train.hooks = [L(PlateauSchedule)(metric="${train.best_metric}", patience=3, stop_patience=8, min_lr=5e-7)]
train.output_dir = "./output/scaledet/r50_odinw13_ft/${odinw.set}"
train.init_checkpoint = "./output/scaledet/r50_l_c_o365_oid/model_final.pth"
