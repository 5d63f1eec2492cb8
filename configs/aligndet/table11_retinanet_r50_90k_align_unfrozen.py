"""RetinaNet R50, 90k, aligned with a backbone that was not frozen (table 11)."""

from .common.recipe import finetune

model, dataloader, optimizer, lr_multiplier, train, data = finetune(
    __file__, "retinanet", "1x", aligned="pretrain_retinanet_r50_unfrozen_1x"
)
