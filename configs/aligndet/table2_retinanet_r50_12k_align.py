"""RetinaNet R50, 12k iterations, aligned (table 2): `data.percent` 1, 5, 10, 20 or 100, `data.fold` 1 to 5."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "retinanet", "12k", aligned="pretrain_retinanet_r50_1x"
)
