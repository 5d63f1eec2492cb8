"""Appendix table 7, L."""

from .supp_table5_detclipv2_swin_l_o365_goldg_cc15m import model
from .supp_table7_detclipv2_swin_t_odinw13_ft import dataloader, lr_multiplier, odinw, optimizer, train

train.init_checkpoint = "./output/detclipv2/swin_l_o365_goldg_cc15m/model_final.pth"
train.output_dir = "./output/detclipv2/swin_l_odinw13"
