"""Appendix table 5 row 3, table 4 row 320x320: O365 + CC3M. The main paper's ablations are overrides of this file."""

from .supp_table5_detclipv2_swin_t_o365_goldg_cc15m import dataloader, lr_multiplier, model, optimizer, train

_sources = dataloader.train.sources
_sources.pairs.datasets = ["cc3m_train"]
dataloader.train.sources = dict(detection=_sources.detection, pairs=_sources.pairs)
dataloader.train.datasets = ["objects365_v2_train", "cc3m_train"]
dataloader.test_datasets = ["lvis_v1_minival"]
train.output_dir = "./output/detclipv2/swin_t_o365_cc3m"
