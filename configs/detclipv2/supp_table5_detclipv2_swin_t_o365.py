"""Appendix table 5 row 1: O365 only."""

from .supp_table5_detclipv2_swin_t_o365_goldg_cc15m import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.sources = dict(detection=dataloader.train.sources.detection)
dataloader.train.datasets = ["objects365_v2_train"]
dataloader.test_datasets = ["lvis_v1_minival"]
train.output_dir = "./output/detclipv2/swin_t_o365"
