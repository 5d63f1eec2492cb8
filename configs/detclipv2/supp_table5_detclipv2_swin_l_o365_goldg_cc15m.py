"""Appendix table 5 row 6, table 6 zero-shot L: Swin-L, 256 images with boxes a batch."""

from .supp_table5_detclipv2_swin_t_o365_goldg_cc15m import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "swin_large_patch4_window12_384.ms_in22k"
for _name in ("detection", "grounding"):
    dataloader.train.sources[_name].total_batch_size = 256
dataloader.train.total_batch_size = 256
optimizer.lr = 4e-4
train.output_dir = "./output/detclipv2/swin_l_o365_goldg_cc15m"
