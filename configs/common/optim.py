"""Optimisers; the engine fills in ``params.model``."""

import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from polydet.engine.optim import param_groups

_params = dict(lr="${..lr}", weight_decay="${..weight_decay}", lr_factors={}, weight_decay_factors={})

adamw = L(torch.optim.AdamW)(
    params=L(param_groups)(**_params), lr=1e-4, weight_decay=1e-4, betas=(0.9, 0.999), fused=True
)
sgd = L(torch.optim.SGD)(params=L(param_groups)(**_params), lr=0.02, weight_decay=1e-4, momentum=0.9)


def deformable_rates(optimizer: DictConfig) -> DictConfig:
    """Rates of Deformable-DETR's repository: 2e-4, a tenth of it for the backbone and for where attention looks."""
    optimizer.lr = 2e-4
    optimizer.params.lr_factors = {r"^backbone\.bottom_up\.": 0.1, r"sampling_offsets|^queries\.reference": 0.1}
    return optimizer
