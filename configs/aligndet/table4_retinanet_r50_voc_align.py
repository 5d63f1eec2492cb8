"""RetinaNet R50 on Pascal VOC 07+12, 12k, aligned on COCO (table 4)."""

from .common.recipe import finetune, voc

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "retinanet", "12k", aligned="pretrain_retinanet_r50_1x"
)
voc(model, dataloader)
