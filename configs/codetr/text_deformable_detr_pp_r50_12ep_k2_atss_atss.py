"""Section 4.4: Co-Deformable-DETR++ with two ATSS heads, batch 32."""

from ..common.models.co_common import co_deformable
from .table3_deformable_detr_pp_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_deformable(model, ("atss",) * 2)
dataloader.train.total_batch_size = train.reference_batch_size = 32
