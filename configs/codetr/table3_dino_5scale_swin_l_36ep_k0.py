"""Table 3: DINO-Deformable-DETR Swin-L, 5 scales, K = 0: 36 epochs."""

from .table3_dino_5scale_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(
    name="swin_large_patch4_window12_384.ms_in22k", freeze_at=0, drop_path_rate=0.6, out_norm=True, checkpointing=True
)
model.encoder.checkpoint_layers = 6
train.max_epochs = 36.0
lr_multiplier.milestones = [30]
