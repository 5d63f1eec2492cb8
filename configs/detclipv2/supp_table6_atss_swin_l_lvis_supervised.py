"""Appendix table 6, supervised L."""

from .supp_table5_detclipv2_swin_l_o365_goldg_cc15m import model as _large
from .supp_table6_atss_swin_t_lvis_supervised import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _large.backbone
train.output_dir = "./output/detclipv2/atss_swin_l_lvis"
