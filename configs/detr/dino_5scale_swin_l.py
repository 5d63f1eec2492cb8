"""DINO Swin-L with 5 scales, from stride 4: 36 epochs; 58.5 AP on COCO val."""

from .dino_4scale_swin_l import dataloader, lr_multiplier, model, optimizer, train

model.backbone.in_features = ["res2", "res3", "res4", "res5"]
model.backbone.num_outs = 5
train.max_epochs = 36.0
lr_multiplier.milestones = [30]
