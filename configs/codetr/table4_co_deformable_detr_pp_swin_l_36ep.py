"""Table 4: Co-Deformable-DETR++ Swin-L with 900 queries: 36 epochs."""

from .table3_deformable_detr_pp_swin_l_12ep_k2 import dataloader, lr_multiplier, model, optimizer, train

model.queries.num_queries = 900
model.postprocess.num = 300
model.backbone.bottom_up.drop_path_rate = 0.6
train.max_epochs = 36.0
lr_multiplier.milestones = [30]
