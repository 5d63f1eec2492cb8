"""Appendix table 4, row 224x224: image-text pairs at 224 pixels."""

from .supp_table5_detclipv2_swin_t_o365_cc3m import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.sources.pairs.mapper.mapper.augmentations.update(height=224, width=224)
train.output_dir = "./output/detclipv2/swin_t_o365_cc3m_res224"
