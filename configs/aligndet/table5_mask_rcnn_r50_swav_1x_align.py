"""Mask R-CNN on a SwAV ResNet-50, 1x, multi-scale, aligned (table 5)."""

from .common.recipe import finetune, multi_scale, ssl_resnet

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "mask_rcnn", "1x", aligned="pretrain_mask_rcnn_r50_swav_1x"
)
ssl_resnet(model, "resnet50_swav", unfrozen=True)
multi_scale(dataloader)
optimizer.update(lr=0.03, weight_decay=5e-6)
lr_multiplier.warmup_iters = 1000
