"""Random problems for multi-scale deformable attention and the error measure, shared by the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from polydet.ops import ms_deform_attn, ms_deform_attn_fused, use_backend


@dataclass(frozen=True)
class Problem:
    shapes: tuple[tuple[int, int], ...]
    batch: int = 2
    queries: int = 7
    heads: int = 2
    channels: int = 8
    points: int = 3
    reference: int = 0  # 0: locations and weights; 2, 4: fused, that many numbers per reference point
    place: str = "inside"
    seed: int = 0

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.shapes)

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
        """value, (reference points,) sampling, attention: values that ``dtype`` can hold, none on a pixel centre,
        where the gradient jumps."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        head = (self.batch, self.queries, self.heads, len(self.shapes), self.points)
        value = normal(self.batch, self.tokens, self.heads, self.channels)
        sampling = self._sampling(normal(*head, 2), generator)
        tensors = [value, sampling, normal(*head)]
        if self.reference:
            points = torch.rand(*head[:2], head[3], self.reference, generator=generator, dtype=torch.float64)
            tensors.insert(1, points)
        return [tensor.to(device=device, dtype=dtype) for tensor in tensors]

    def _sampling(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        spread, centre = {0: (0.3, 0.5), 2: (3.0, 0.0), 4: (2.0, 0.0)}[self.reference]
        if self.place == "inside":
            return noise * spread * 0.5 + centre
        if self.place == "border":
            side = torch.randint(-1, 2, noise.shape, generator=generator)
            return noise * 0.02 * spread + centre + side * (spread if self.reference else 0.5)
        exponent = torch.randint(0, 12, noise.shape, generator=generator)
        return noise * 10.0**exponent + centre

    def call(self, tensors: list[Tensor], backend: str, deterministic: bool | None = None) -> Tensor:
        entry = ms_deform_attn_fused if self.reference else ms_deform_attn
        with use_backend(backend):
            return entry(tensors[0], self.shapes, None, *tensors[1:], deterministic=deterministic)

    def run(self, inputs: list[Tensor], backend: str, deterministic: bool | None = None) -> list[Tensor]:
        """Output and the gradient of every input."""
        tensors = [tensor.detach().requires_grad_() for tensor in inputs]
        output = self.call(tensors, backend, deterministic)
        generator = torch.Generator().manual_seed(self.seed + 1)
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        return [output.detach(), *torch.autograd.grad(output, tensors, grad)]

    def errors(self, dtype: torch.dtype, backend: str, device: str = "cpu", deterministic: bool | None = None) -> list:
        """Relative error of output and every gradient against the float64 reference on the same inputs."""
        inputs = self.inputs(dtype, device)
        results = self.run(inputs, backend, deterministic)
        for result, tensor in zip(results[1:], inputs):
            assert result.dtype == tensor.dtype and result.shape == tensor.shape
        expected = self.run([tensor.double() for tensor in inputs], "reference")
        return [relative_error(*pair) for pair in zip(results, expected)]


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude; infinite if anything is not finite."""
    if not expected.numel():
        return 0.0
    difference = (result.double() - expected).abs().max()
    if not torch.isfinite(difference):
        return float("inf")
    return float(difference / expected.abs().max().clamp(min=1e-12))


@st.composite
def problems(draw: st.DrawFn, channels: tuple[int, ...] = (8, 16), largest: int = 7, most: int = 3) -> Problem:
    """Levels up to ``largest`` pixels a side; up to ``most`` levels, points and heads."""
    sizes = st.tuples(st.integers(1, largest), st.integers(1, largest))
    return Problem(
        shapes=tuple(draw(st.lists(sizes, min_size=1, max_size=most))),
        batch=draw(st.integers(1, 2)),
        queries=draw(st.integers(1, 9)),
        heads=draw(st.integers(1, most)),
        channels=draw(st.sampled_from(channels)),
        points=draw(st.integers(1, most)),
        reference=draw(st.sampled_from((0, 2, 4))),
        place=draw(st.sampled_from(("inside", "border", "far"))),
        seed=draw(st.integers(0, 2**31)),
    )
