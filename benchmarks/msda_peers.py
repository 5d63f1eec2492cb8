"""Cases, inputs and peers of the benchmark of multi-scale deformable attention (``msda.py``)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polydet.ops import ms_deform_attn, ms_deform_attn_reference, sampling_locations, tiled_query_order
from polydet.ops.reference import attention_weights

HEADS, CHANNELS, LEVELS, POINTS = 8, 32, 4, 4
OURS, REFERENCE, HUGGINGFACE, HUB, MSDA_TRITON = "polydet", "reference", "huggingface", "hub kernel", "msda-triton"
OURS_TILED, OURS_DETERMINISTIC = "polydet, tiled queries", "polydet, deterministic"
Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    level: str  # "op" or "layer"
    size: tuple[int, int]  # image, pixels
    queries: str  # "encoder" or "decoder"
    batch: int
    dtype: str

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        height, width = self.size
        return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in (8, 16, 32, 64))

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def query_count(self) -> int:
        return self.tokens if self.queries == "encoder" else 900

    @property
    def title(self) -> str:
        height, width = self.size
        return f"{self.level}, {self.queries}, {height}x{width}, batch {self.batch}, {self.dtype}"


@dataclass
class Inputs:
    shapes: tuple[tuple[int, int], ...]
    sizes: Tensor
    starts: Tensor
    value: Tensor  # [B, S, H, D]
    reference_points: Tensor  # [B, Q, L, 2], float32
    locations: Tensor
    weights: Tensor


def huggingface() -> Op:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention as Theirs

    module = Theirs()
    return lambda x, value, locations, weights: module(value, x.sizes, x.shapes, x.starts, locations, weights, 64)


def hub_kernel() -> Op:
    from kernels import get_kernel

    kernel = get_kernel("kernels-community/deformable-detr", version=1)

    class Original(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, sizes, starts, locations, weights):
            ctx.save_for_backward(value, sizes, starts, locations, weights)
            return kernel.ms_deform_attn_forward(value, sizes, starts, locations, weights, len(value))

        @staticmethod
        def backward(ctx, grad):
            step = len(ctx.saved_tensors[0])
            grads = kernel.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), step)
            return grads[0], None, None, grads[1], grads[2]

    def op(x, value, locations, weights):
        single = [tensor.float() for tensor in (value, locations, weights)]
        return Original.apply(single[0], x.sizes, x.starts, *single[1:]).to(value.dtype)

    return op


def msda_triton() -> Op:
    try:
        from msda_triton.frontend import triton_multiscale_deformable_attention as theirs  # without its fallback
    except ImportError:
        from msda_triton.autograd_function import triton_multiscale_deformable_attention as theirs

    def op(x, value, locations, weights):
        cast = [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in (value, locations, weights)]
        return theirs(cast[0], x.sizes, *cast[1:], "zeros", False).flatten(2).to(value.dtype)

    return op


def find_peers(device: torch.device) -> tuple[dict[str, Op], dict[str, str]]:
    """Peers' ops ``(inputs, value, locations, weights) -> output`` by name, and why the others are missing."""
    found: dict[str, Op] = {
        OURS: lambda x, v, loc, w: ms_deform_attn(v, x.shapes, None, loc, w),
        REFERENCE: lambda x, v, loc, w: ms_deform_attn_reference(v, x.shapes, None, loc, w),
    }
    missing = {}
    for name, load in ((HUGGINGFACE, huggingface), (HUB, hub_kernel), (MSDA_TRITON, msda_triton)):
        if name != HUGGINGFACE and device.type != "cuda":
            missing[name] = "runs on CUDA only"
            continue
        try:
            found[name] = load()
        except Exception as error:  # not installed, not downloadable, or built for another torch: say which
            missing[name] = f"{type(error).__name__}: {str(error)[:200]}"
    if device.type == "cuda":
        found[OURS_TILED] = lambda x, v, loc, w: ms_deform_attn(
            v, x.shapes, None, loc, w, query_order=_order(x, loc.shape[1])
        )
        found[OURS_DETERMINISTIC] = lambda x, v, loc, w: ms_deform_attn(v, x.shapes, None, loc, w, deterministic=True)
    return found, missing


_orders: dict[tuple, Tensor] = {}


def _order(x: Inputs, queries: int) -> Tensor | None:
    if queries != x.value.shape[1]:
        return None
    if x.shapes not in _orders:
        _orders[x.shapes] = tiled_query_order(x.shapes, x.value.device)
    return _orders[x.shapes]


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Like a trained encoder's: samples within a few pixels of the query; a decoder's queries lie anywhere."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if case.queries == "encoder":
        grids = []
        for height, width in case.shapes:
            y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            grids.append(torch.stack((x / width, y / height), -1).view(-1, 2))
        points = torch.cat(grids).expand(case.batch, -1, -1)
    else:
        points = torch.rand(case.batch, case.query_count, 2, generator=generator)
    points = points[:, :, None].expand(-1, -1, LEVELS, -1).contiguous().to(device)
    head = (case.batch, case.query_count, HEADS, LEVELS, POINTS)
    offsets = (torch.randn(*head, 2, generator=generator) * 2).to(device)
    value = torch.randn(case.batch, case.tokens, HEADS, CHANNELS, generator=generator).to(device, dtype)
    sizes = torch.tensor(case.shapes, device=device)
    areas = sizes.prod(1)
    return Inputs(
        case.shapes, sizes, areas.cumsum(0) - areas, value, points,
        sampling_locations(points, offsets, case.shapes).to(dtype),
        attention_weights(torch.randn(head, generator=generator)).to(device, dtype),
    )  # fmt: skip
