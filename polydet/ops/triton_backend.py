"""Launching the Triton kernels: checks, buffers, and errors that say what failed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import kernels

_COMPUTE = {
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
_QUERY_BUCKETS = (2048, 16384)  # a decoder, an encoder of a small and of a large image
_FIXED_POINT_BITS = 62


def _interpreted() -> bool:
    return not isinstance(kernels.forward_kernel.fn, triton.runtime.JITFunction)


def _can_tune() -> bool:
    return not _interpreted()  # there is nothing to time


class _Problem:
    """Contiguous inputs of one call and the arguments that both kernels share."""

    def __init__(
        self,
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        reference_points: Tensor | None,
        sampling: Tensor,
        attention: Tensor,
        order: Tensor | None,
    ) -> None:
        self.value = value.contiguous()
        self.sampling = sampling.contiguous()
        self.attention = attention.contiguous()
        self.reference = None if reference_points is None else reference_points.contiguous()
        self.order = None if order is None else order.contiguous()
        self.shapes = shapes.contiguous()
        self.starts = starts.contiguous()
        self.batch, self.tokens, self.heads, self.channels = value.shape
        self.queries, _, self.levels, self.points = attention.shape[1:]
        self._check()
        self.dtype = torch.promote_types(value.dtype, torch.float32)

    def _check(self) -> None:
        device = self.value.device
        if device.type != "cuda" and not _interpreted():
            raise RuntimeError(f"the Triton kernels need CUDA tensors (or TRITON_INTERPRET=1), value is on {device}")
        if self.value.dtype not in _COMPUTE:
            raise TypeError(f"the Triton kernels take float16, bfloat16, float32 and float64, not {self.value.dtype}")
        channels = self.channels
        if channels & (channels - 1) or not 8 <= channels <= 128:
            raise ValueError(
                f"the Triton kernels take head dimensions 8, 16, 32, 64 and 128, not {channels}; "
                "polydet.ops.use_backend('reference') takes any"
            )
        if self.order is not None and (self.order.shape != (self.queries,) or self.order.device != device):
            raise ValueError(
                f"query_order {tuple(self.order.shape)} on {self.order.device} should be ({self.queries},) on {device}"
            )
        largest = max(self.tokens * self.heads * channels, self.attention[:1].numel() * 2)
        if largest >= 2**31 or max(self.batch, self.heads) > 65535:
            raise ValueError(f"too large for the Triton kernels: {self.describe()}")

    def describe(self) -> str:
        """Shapes and dtypes for error messages."""
        reference = self.reference
        return (
            f"value {tuple(self.value.shape)} {self.value.dtype}, levels {self.levels}, "
            f"sampling {tuple(self.sampling.shape)} {self.sampling.dtype}, "
            f"attention {tuple(self.attention.shape)} {self.attention.dtype}, "
            f"reference_points {None if reference is None else (*reference.shape, reference.dtype)}, "
            f"device {self.value.device}"
        )

    def inputs(self) -> list[Tensor]:
        placeholder = self.value  # a pointer that is not read
        reference = placeholder if self.reference is None else self.reference
        order = placeholder if self.order is None else self.order
        return [self.value, self.shapes, self.starts, reference, self.sampling, self.attention, order]

    def sizes(self) -> list[int]:
        return [self.tokens, self.queries, sum(self.batch * self.queries > bound for bound in _QUERY_BUCKETS)]

    def constants(self) -> dict[str, Any]:
        return {
            "HEADS": self.heads,
            "CHANNELS": self.channels,
            "LEVELS": self.levels,
            "POINTS": self.points,
            "SAMPLES_PADDED": triton.next_power_of_2(self.levels * self.points),
            "REFERENCE": 0 if self.reference is None else self.reference.shape[-1],
            "ORDERED": self.order is not None,
            "COMPUTE": _COMPUTE[self.value.dtype],
            "enable_fp_fusion": True,
        }

    def launch(self, kernel: Any, args: list, constants: dict[str, Any], tuned: bool) -> None:
        """Run ``kernel``; a fixed configuration instead of the tuned one where results must repeat to the bit."""

        def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
            return triton.cdiv(self.queries, meta["BLOCK"]), self.heads, self.batch

        if not (tuned and _can_tune()):
            kernel = kernel.fn
            constants = {**constants, "BLOCK": 512 // self.channels, "num_warps": 4, "num_stages": 1}
        device = torch.cuda.device(self.value.device) if self.value.is_cuda else nullcontext()
        try:
            with device:
                kernel[grid](*args, *self.sizes(), **constants)
        except Exception as error:
            raise RuntimeError(f"Triton multi-scale deformable attention failed: {self.describe()}: {error}") from error


def forward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    reference_points: Tensor | None,
    sampling: Tensor,
    attention: Tensor,
    order: Tensor | None,
    deterministic: bool,
) -> Tensor:
    """``[B, Q, H * D]``; ``shapes [L, 2]`` and ``starts [L]`` int64 on the device, ``order [Q]`` int32."""
    problem = _Problem(value, shapes, starts, reference_points, sampling, attention, order)
    output = torch.empty(
        (problem.batch, problem.queries, problem.heads * problem.channels), dtype=value.dtype, device=value.device
    )
    if output.numel():
        args = [*problem.inputs(), output]
        problem.launch(kernels.forward_kernel, args, problem.constants(), tuned=not deterministic)
    return output


def _fixed_point_scale(grad: Tensor, problem: _Problem) -> Tensor:
    """Power of two ``[1]`` float64 that keeps every sum of the value gradient within int64; NaN if none can.

    A row gets at most one contribution per query and point, each at most the largest weight times the largest
    gradient.
    """
    bound = grad.abs().amax().double() * (problem.queries * problem.points)
    if problem.reference is None:
        bound = bound * problem.attention.abs().amax().double()
    exponent = bound.clamp(min=2.0**-60).log2().ceil()
    return torch.where(bound.isfinite(), (_FIXED_POINT_BITS - exponent).exp2(), torch.nan).reshape(1)


def backward(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    reference_points: Tensor | None,
    sampling: Tensor,
    attention: Tensor,
    order: Tensor | None,
    need_reference: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of value, reference points, sampling and attention, in the inputs' dtypes."""
    problem = _Problem(value, shapes, starts, reference_points, sampling, attention, order)
    dtype, device = problem.dtype, value.device
    grad = grad.contiguous()
    need_reference = need_reference and problem.reference is not None
    grad_value = torch.zeros(value.shape, dtype=torch.int64 if deterministic else dtype, device=device)
    grad_sampling = torch.empty(sampling.shape, dtype=sampling.dtype, device=device)
    grad_attention = torch.empty(attention.shape, dtype=attention.dtype, device=device)
    same = attention.dtype == dtype
    grad_weight = grad_attention if same else torch.empty(attention.shape, dtype=dtype, device=device)
    grad_reference = None
    if need_reference:
        assert problem.reference is not None
        shape = (*attention.shape[:4], problem.reference.shape[-1])
        grad_reference = torch.empty(shape, dtype=dtype, device=device)
    scale = None
    if grad.numel():
        scale = _fixed_point_scale(grad, problem) if deterministic else None
        constants = {**problem.constants(), "NEED_REFERENCE": need_reference, "FIXED_POINT": deterministic}
        args = [
            grad,
            *problem.inputs(),
            value if scale is None else scale,
            grad_value,
            grad_weight if grad_reference is None else grad_reference,
            grad_sampling,
            grad_weight,
            grad_attention if problem.reference is not None else grad_weight,
        ]
        problem.launch(kernels.backward_kernel, args, constants, tuned=not deterministic)
    if problem.reference is None and not same:
        grad_attention.copy_(grad_weight)
    if grad_reference is not None:
        grad_reference = grad_reference.sum(2).to(problem.reference.dtype)  # type: ignore[union-attr]
    if scale is not None:
        grad_value = grad_value.to(dtype) * (1 / scale).to(dtype)
    return grad_value.to(value.dtype), grad_reference, grad_sampling, grad_attention
