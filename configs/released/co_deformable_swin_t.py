"""Co-Deformable-DETR Swin-T of the release: 300 queries, 12 epochs; 51.7 AP on COCO val."""

from ..codetr.table3_deformable_detr_pp_swin_l_12ep_k2 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(name="swin_tiny_patch4_window7_224.ms_in1k", drop_path_rate=0.2)
model.collaboration.head_embedding = "scalar"
