"""DETR R50 on Pascal VOC 07+12, 100 epochs, aligned on COCO (table 4)."""

from .common.recipe import finetune, voc

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "detr", "100ep", aligned="pretrain_detr_r50_50ep"
)
voc(model, dataloader)
train.max_epochs = 100
lr_multiplier.update(milestones=[70 / 100], warmup_iters=0)
train.clip_grad.kind = "none"
