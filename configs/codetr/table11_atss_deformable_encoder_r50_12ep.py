"""Table 11: ATSS in place of the decoder of Deformable-DETR++, 12 epochs."""

from codetr import EncoderDetector

from ..common.models.co_common import co_deformable
from .table3_deformable_detr_pp_r50_12ep_k0 import dataloader, lr_multiplier, model, optimizer, train

co_deformable(model, ("atss",))
model._target_ = EncoderDetector
