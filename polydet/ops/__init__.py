"""Multi-scale deformable attention: Triton kernels, a fast CPU path and a readable reference behind one function."""

from .dispatch import backend, set_backend, use_backend
from .functional import ms_deform_attn, ms_deform_attn_fused
from .module import MultiScaleDeformableAttention
from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference, sampling_locations
from .shapes import tiled_query_order

__all__ = [
    "MultiScaleDeformableAttention",
    "backend",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "sampling_locations",
    "set_backend",
    "tiled_query_order",
    "use_backend",
]
