"""Appendix table 5 row 4, table 6 zero-shot T, figure 1: O365 + GoldG + CC15M, Swin-T."""

from .common.joint import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/detclipv2/swin_t_o365_goldg_cc15m"
