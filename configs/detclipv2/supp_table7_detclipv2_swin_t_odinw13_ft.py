"""Appendix table 7, T (settings of appendix table 3): one ODinW set; tools/odinw.py runs the thirteen."""

from detectron2.config import LazyCall as L

from polydet.engine.plateau import PlateauSchedule

from ..common.schedules import constant as lr_multiplier
from .supp_table5_detclipv2_swin_t_o365 import dataloader, model, optimizer, train

odinw = dict(set="PascalVOC")
dataloader.train.datasets = ["odinw_${odinw.set}_train"]
dataloader.train.total_batch_size = 32
dataloader.train.sources.detection.update(datasets="${dataloader.train.datasets}", total_batch_size=32, sampler=None)
dataloader.train.sources.detection.mapper.num_concepts = None  # all class names in every step
dataloader.test_datasets = ["odinw_${odinw.set}_val"]
dataloader.evaluators = {}
optimizer.lr = 4e-5
optimizer.params.lr_factors = {r"^text_tower\.": 0.01}
lr_multiplier.warmup_iters = 500
train.hooks = [L(PlateauSchedule)(metric="${train.best_metric}", patience=5, stop_patience=8, factor=0.1, min_lr=1e-8)]
train.hooks[0].warmup_iters = "${lr_multiplier.warmup_iters}"
train.update(max_epochs=250, eval_period_epochs=1, best_metric="odinw_${odinw.set}_val/bbox/AP")
train.init_checkpoint = "./output/detclipv2/swin_t_o365_goldg_cc15m/model_final.pth"
train.output_dir = "./output/detclipv2/swin_t_odinw13"
