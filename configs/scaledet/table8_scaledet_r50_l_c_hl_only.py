"""Table 8, L_hl on L,C."""

from .table1_scaledet_r50_l_c import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.label_loss.soft_weight = 0.0
train.output_dir = "./output/scaledet/r50_l_c_hl_only"
