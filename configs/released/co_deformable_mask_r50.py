"""Co-Deformable-DETR R50 of the release with Mask R-CNN beside ATSS; masks need `use_masks` in training only."""

from ..codetr.table3_deformable_detr_pp_r50_12ep_k2 import dataloader, lr_multiplier, model, optimizer, train

model.heads = ["mask_rcnn", "atss"]
dataloader.train.mapper.use_masks = True
