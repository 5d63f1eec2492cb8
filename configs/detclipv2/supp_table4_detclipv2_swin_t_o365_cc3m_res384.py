"""Appendix table 4, row 384x384: image-text pairs at 384 pixels."""

from .supp_table5_detclipv2_swin_t_o365_cc3m import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.sources.pairs.mapper.mapper.augmentations.update(height=384, width=384)
train.output_dir = "./output/detclipv2/swin_t_o365_cc3m_res384"
