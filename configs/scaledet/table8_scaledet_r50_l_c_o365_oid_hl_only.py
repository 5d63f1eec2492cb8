"""Table 8, L_hl on L,C,O365,OID."""

from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.label_loss.soft_weight = 0.0
train.output_dir = "./output/scaledet/r50_l_c_o365_oid_hl_only"
