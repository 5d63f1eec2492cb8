"""Multi-scale deformable attention as PyTorch operators, so that compile, export, checkpointing and autograd see it.

``polydet::ms_deform_attn`` covers both entry points: with ``reference_points`` its ``sampling`` are raw offsets and
its ``attention`` logits, without they are locations and weights. ``backend`` is ``"auto"`` (by device), ``"triton"``
or ``"cpu"``; the reference needs no operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu
from .coordinates import Coordinates
from .shapes import shapes_to_list

_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor? reference_points, Tensor sampling, "
    "Tensor attention, Tensor? query_order"
)


def _backend_of(value: Tensor, backend: str) -> str:
    if backend == "auto":
        backend = "cpu" if value.device.type == "cpu" else "triton"
    if backend == "cpu" and value.device.type != "cpu":
        raise RuntimeError(f"backend 'cpu' needs CPU tensors, value is on {value.device}")
    return backend


def _is_deterministic(deterministic: bool | None) -> bool:
    return torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic


class _CpuProblem:
    """Checked inputs of the CPU path, weights after the softmax, in at least float32."""

    def __init__(
        self,
        value: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        reference_points: Tensor | None,
        sampling: Tensor,
        attention: Tensor,
    ) -> None:
        self.dtype = torch.promote_types(value.dtype, torch.float32)
        shapes = shapes_to_list(spatial_shapes)
        self.starts = level_start_index.tolist()
        check_levels(value.shape[1], shapes, self.starts)
        self.value = value
        self.coordinates = Coordinates(shapes, reference_points, sampling, self.dtype)
        self.weights = attention.to(self.dtype)
        if reference_points is not None:
            self.weights = self.weights.flatten(3).softmax(-1).view(attention.shape)


def check_levels(tokens: int, shapes: list[tuple[int, int]], starts: list[int]) -> None:
    """Raise ValueError where a level reaches beyond the ``tokens`` of the value tensor."""
    for level, ((height, width), start) in enumerate(zip(shapes, starts, strict=True)):
        if start < 0 or start + height * width > tokens:
            raise ValueError(
                f"level {level} of {height} x {width} starting at {start} does not fit a value tensor of "
                f"{tokens} tokens; spatial_shapes are {shapes}"
            )


@torch.library.custom_op(
    "polydet::ms_deform_attn",
    mutates_args=(),
    schema=f"({_INPUTS}, bool? deterministic, str backend) -> Tensor",
)
def forward_op(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor | None,
    sampling: Tensor,
    attention: Tensor,
    query_order: Tensor | None,
    deterministic: bool | None,
    backend: str,
) -> Tensor:
    """``[B, Q, H * D]`` in the dtype of ``value``; arguments as :func:`polydet.ops.ms_deform_attn`."""
    inputs = (value, spatial_shapes, level_start_index, reference_points, sampling, attention)
    if _backend_of(value, backend) == "triton":
        from . import triton_backend  # not before it is needed: Triton takes a second, and some machines have none

        return triton_backend.forward(*inputs, query_order, _is_deterministic(deterministic))
    problem = _CpuProblem(*inputs)
    return cpu.forward(value, problem.starts, problem.coordinates, problem.weights).to(value.dtype)


@forward_op.register_fake
def _(value: Tensor, _shapes: Tensor, _starts: Tensor, _reference: Tensor | None, sampling: Tensor, *_: Any) -> Tensor:
    return value.new_empty((value.shape[0], sampling.shape[1], value.shape[2] * value.shape[3]))


@torch.library.custom_op(
    "polydet::ms_deform_attn_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, bool need_reference, bool? deterministic, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def backward_op(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor | None,
    sampling: Tensor,
    attention: Tensor,
    query_order: Tensor | None,
    need_reference: bool,
    deterministic: bool | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference points (empty unless needed), sampling and attention, in their dtypes."""
    inputs = (value, spatial_shapes, level_start_index, reference_points, sampling, attention)
    if _backend_of(value, backend) == "triton":
        from . import triton_backend

        grad_value, grad_reference, grad_sampling, grad_attention = triton_backend.backward(
            grad, *inputs, query_order, need_reference, _is_deterministic(deterministic)
        )
        return (
            grad_value,
            value.new_empty(0) if grad_reference is None else grad_reference,
            grad_sampling,
            grad_attention,
        )
    problem = _CpuProblem(*inputs)
    grad_value, grad_pixels, grad_attention = cpu.backward(
        grad.to(problem.dtype), value, problem.starts, problem.coordinates, problem.weights
    )
    grad_reference, grad_sampling = problem.coordinates.backward(grad_pixels, need_reference)
    if reference_points is not None:  # through the softmax
        weighted = problem.weights * grad_attention
        grad_attention = weighted - problem.weights * weighted.sum((3, 4), keepdim=True)
    return (
        grad_value.to(value.dtype),
        value.new_empty(0) if grad_reference is None else grad_reference.to(reference_points.dtype),  # type: ignore[union-attr]
        grad_sampling.to(sampling.dtype),
        grad_attention.to(attention.dtype),
    )


@backward_op.register_fake
def _(_grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value, _, _, reference_points, sampling, attention, _, need_reference, *_ = arguments

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    wanted = reference_points is not None and need_reference
    grad_reference = like(reference_points) if wanted else value.new_empty(0)
    return like(value), grad_reference, like(sampling), like(attention)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, deterministic, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = (deterministic, backend)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    tensors = ctx.saved_tensors
    need_reference = tensors[3] is not None and ctx.needs_input_grad[3]
    grad_value, grad_reference, grad_sampling, grad_attention = backward_op(
        grad, *tensors, need_reference, *ctx.options
    )
    return (
        grad_value, None, None, grad_reference if need_reference else None, grad_sampling, grad_attention,
        None, None, None,
    )  # fmt: skip


forward_op.register_autograd(_backward, setup_context=_setup_context)
