"""The fast CPU path against the float64 reference: output and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from msda_inputs import Problem, problems

from polydet.ops import cpu


@settings(max_examples=60, deadline=None)
@given(problem=problems(channels=(1, 3, 8, 32), largest=9))
def test_single_precision(problem):
    # where few points lie on the map a gradient is a small difference of larger terms, in plain PyTorch too
    plain = problem.errors(torch.float32, "reference")
    for error, allowed in zip(problem.errors(torch.float32, "cpu"), plain):
        assert error <= max(1e-5, 2 * allowed)


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_double_precision(problem):
    assert max(problem.errors(torch.float64, "cpu")) <= 1e-11


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_half_precision(dtype, tolerance, reference):
    problem = Problem(((6, 7), (3, 3)), reference=reference)
    assert max(problem.errors(dtype, "cpu")) <= tolerance


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_gradcheck(reference):
    problem = Problem(((2, 3), (1, 2)), batch=1, queries=2, heads=2, channels=2, points=2, reference=reference)
    inputs = [tensor.requires_grad_() for tensor in problem.inputs()]
    assert torch.autograd.gradcheck(lambda *tensors: problem.call(list(tensors), "cpu"), inputs)


@pytest.mark.parametrize("samples", [1, 60, 1 << 17])
def test_groups_of_heads_make_no_difference(samples, monkeypatch):
    monkeypatch.setattr(cpu, "_GROUP_SAMPLES", samples)
    problem = Problem(((5, 4), (2, 3)), batch=3, heads=5, reference=4)
    assert max(problem.errors(torch.float32, "cpu")) <= 1e-5


def test_levels_too_large_for_sixteen_bit_keys():
    problem = Problem(((200, 180),), batch=1, queries=50, heads=1, reference=2)
    assert max(problem.errors(torch.float64, "cpu")) <= 1e-11
    resolution = 2.0**-16  # of a float32 coordinate near 200
    assert max(problem.errors(torch.float32, "cpu")) <= 2 * resolution


def test_gradients_repeat_to_the_bit():
    problem = Problem(((9, 9), (4, 5)), queries=200, reference=2, place="border")
    inputs = problem.inputs(torch.float32)
    first, second = (problem.run(inputs, "cpu") for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second))


@pytest.mark.parametrize("reference", [0, 4])
def test_poisoned_buffers_are_all_written(reference):
    """Under deterministic algorithms PyTorch fills every empty tensor with NaN."""
    problem = Problem(((4, 5), (2, 3)), reference=reference)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(4).isnan().all()
        assert max(problem.errors(torch.float32, "cpu")) <= 1e-5
    finally:
        torch.use_deterministic_algorithms(False)
