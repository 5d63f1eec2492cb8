"""Section 4.1: box-domain pre-training of CBNetV2 with two Swin-L, half precision."""

from .common.recipe import adamw, pretrain

model, dataloader, optimizer, lr_multiplier, train = pretrain(__file__, "cbnet")
optimizer = adamw(1e-4, 0.05, swin=False)
lr_multiplier.warmup_iters = 1000
dataloader.train.mapper.update(random_resize=[400, 1400], max_size=1600)
train.amp.dtype = "float16"
