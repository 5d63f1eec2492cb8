"""Table 1, baseline O365: hard labels of one dataset."""

from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.update(datasets=["objects365_v2_train"], total_batch_size=64)
model.roi_heads.label_loss.soft_weight = 0.0
train.update(max_iter=540000, reference_batch_size=64, output_dir="./output/scaledet/baseline_r50_o365")
