"""Table 7: H-Deformable-DETR: 1500 further queries matched to every object six times, batch 32, 12 epochs."""

from codetr import GroupedDETR

from .table3_deformable_detr_pp_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

model._target_ = GroupedDETR
model.group_sizes = [300, 1500]
model.repeats = [1, 6]
model.average = False
model.queries.num_queries = 1800
dataloader.train.total_batch_size = train.reference_batch_size = 32
