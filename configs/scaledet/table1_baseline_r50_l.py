"""Table 1, baseline L (also Figures 3 and 4): hard labels of one dataset."""

from .table1_scaledet_r50_l_c_o365_oid import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.update(datasets=["lvis_v1_train"], total_batch_size=64)
model.roi_heads.label_loss.soft_weight = 0.0
train.update(max_iter=90000, reference_batch_size=64, output_dir="./output/scaledet/baseline_r50_l")
