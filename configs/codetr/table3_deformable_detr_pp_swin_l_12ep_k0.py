"""Table 3: Deformable-DETR++ Swin-L, K = 0: 12 epochs."""

from .table3_deformable_detr_pp_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(
    name="swin_large_patch4_window12_384.ms_in22k", freeze_at=0, drop_path_rate=0.3, out_norm=True, checkpointing=True
)
model.encoder.checkpoint_layers = 6
optimizer.weight_decay = 0.05
