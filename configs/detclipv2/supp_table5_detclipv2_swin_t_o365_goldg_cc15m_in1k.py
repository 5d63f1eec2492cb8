"""Appendix table 5 row 5: O365 + GoldG + CC15M + ImageNet-1k three times."""

from .supp_table5_detclipv2_swin_t_o365_goldg_cc15m import dataloader, lr_multiplier, model, optimizer, train

_sources = dataloader.train.sources
_sources.classes = _sources.pairs.copy()
_sources.classes.update(datasets=["imagenet1k_pairs_train"], repeat=3)
_sources.classes.mapper.task = "classification"
dataloader.train.datasets = [*dataloader.train.datasets, "imagenet1k_pairs_train"]
dataloader.test_datasets = ["lvis_v1_minival"]
train.output_dir = "./output/detclipv2/swin_t_o365_goldg_cc15m_in1k"
