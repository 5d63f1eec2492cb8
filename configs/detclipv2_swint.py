"""The headline: DetCLIPv2-T on O365 + GoldG + CC15M (appendix table 5 row 4)."""

from .detclipv2.supp_table5_detclipv2_swin_t_o365_goldg_cc15m import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/detclipv2_swint"
