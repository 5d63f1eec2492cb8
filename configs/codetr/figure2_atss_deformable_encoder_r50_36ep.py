"""Figure 2: ATSS in place of the decoder of Deformable-DETR, 36 epochs."""

from codetr import EncoderDetector

from ..common.models.co_common import co_deformable
from .table2_deformable_detr_r50_36ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_deformable(model, ("atss",))
model._target_ = EncoderDetector
