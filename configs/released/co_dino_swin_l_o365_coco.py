"""Co-DINO Swin-L of the release, from Objects365: tested at 1280 x 2048; 64.1 AP on COCO val."""

from ..codetr.table4_co_dino_5scale_swin_l_36ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.mapper.augmentations.update(short=1280, max_size=2048)
model.backbone.bottom_up.drop_path_rate = 0.3
model.backbone.size_divisibility = 32
train.max_epochs = 16.0
