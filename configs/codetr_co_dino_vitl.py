"""Co-DINO ViT-L on COCO from Objects365, with test-time augmentation: 65.9 AP on val (table 5)."""

from .codetr.table5_co_dino_vit_l_o365_coco_12ep import dataloader, lr_multiplier, model, optimizer, train
