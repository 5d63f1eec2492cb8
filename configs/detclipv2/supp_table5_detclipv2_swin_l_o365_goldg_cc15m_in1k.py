"""Appendix table 5 row 7: Swin-L with ImageNet-1k three times."""

from .supp_table5_detclipv2_swin_l_o365_goldg_cc15m import lr_multiplier, model, optimizer
from .supp_table5_detclipv2_swin_t_o365_goldg_cc15m_in1k import dataloader, train

for _name in ("detection", "grounding"):
    dataloader.train.sources[_name].total_batch_size = 256
dataloader.train.total_batch_size = 256
train.output_dir = "./output/detclipv2/swin_l_o365_goldg_cc15m_in1k"
