"""Appendix table 6, fine-tuned T (settings of appendix table 2): boxes of LVIS, 24 epochs, batch 64."""

from .supp_table5_detclipv2_swin_t_o365 import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["lvis_v1_train"]
dataloader.train.total_batch_size = 64
dataloader.train.sources.detection.update(datasets=["lvis_v1_train"], total_batch_size=64, sampler=None)
dataloader.test_datasets = ["lvis_v1_minival", "lvis_v1_val"]
optimizer.lr = 4e-5
train.update(
    max_epochs=24,
    init_checkpoint="./output/detclipv2/swin_t_o365_goldg_cc15m/model_final.pth",
    output_dir="./output/detclipv2/swin_t_lvis_ft",
)
