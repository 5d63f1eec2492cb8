"""Appendix table 5 row 2: O365 + ImageNet-1k three times, k = 1, cross entropy."""

from .supp_table5_detclipv2_swin_t_o365_cc3m import dataloader, lr_multiplier, model, optimizer, train

_sources = dataloader.train.sources
_sources.pairs.update(datasets=["imagenet1k_pairs_train"], repeat=3)
_sources.pairs.mapper.task = "classification"
dataloader.train.datasets = ["objects365_v2_train", "imagenet1k_pairs_train"]
train.output_dir = "./output/detclipv2/swin_t_o365_in1k"
