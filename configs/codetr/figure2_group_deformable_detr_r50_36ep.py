"""Figure 2: Group-DETR on plain Deformable-DETR, eleven groups (its own default; not stated), 36 epochs."""

from codetr import GroupedDETR

from .table2_deformable_detr_r50_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

model._target_ = GroupedDETR
model.group_sizes = [300] * 11
model.repeats = [1] * 11
model.average = True
model.queries.num_queries = 3300
