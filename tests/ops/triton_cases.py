"""Tests of the Triton kernels: on a GPU where there is one, else on the CPU under Triton's interpreter.

``test_triton.py`` runs this file in a process of its own, because the interpreter must be chosen before Triton is
imported. By hand: ``TRITON_INTERPRET=1 pytest tests/ops/triton_cases.py``, or without the variable on a GPU.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from msda_inputs import Problem, problems, relative_error

from polydet.ops import (
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_fused,
    tiled_query_order,
    triton_backend,
    use_backend,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EXAMPLES, MOST = (10, 2) if INTERPRETED else (100, 4)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
relaxed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(problem=problems(largest=5, most=MOST))
def test_single_precision(problem):
    assert max(problem.errors(torch.float32, "triton", DEVICE)) <= 1e-5


@settings(relaxed, max_examples=EXAMPLES // 3)
@given(problem=problems(largest=5, most=MOST))
def test_double_precision(problem):
    assert max(problem.errors(torch.float64, "triton", DEVICE)) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_half_precision(dtype, reference):
    problem = Problem(((4, 5), (2, 3)), heads=1, points=2, reference=reference)
    assert max(problem.errors(dtype, "triton", DEVICE)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("channels", [8, 16, 32, 64, 128])
def test_head_dimensions(channels):
    problem = Problem(((4, 5), (2, 3)), channels=channels, heads=1, points=2, reference=4, place="border")
    assert max(problem.errors(torch.float32, "triton", DEVICE)) <= 1e-5


@pytest.mark.parametrize(("levels", "points"), [(1, 1), (5, 1), (1, 9), (3, 5)])
def test_numbers_of_levels_and_points(levels, points):
    problem = Problem(((3, 4),) * levels, points=points, heads=1, reference=2)
    assert max(problem.errors(torch.float32, "triton", DEVICE)) <= 1e-5


def test_more_queries_than_a_program_holds():
    problem = Problem(((9, 8), (4, 4)), queries=150, heads=1, points=1, reference=2)
    assert max(problem.errors(torch.float32, "triton", DEVICE)) <= 1e-5


@pytest.mark.parametrize("reference", [0, 4])
def test_deterministic_gradients(reference):
    problem = Problem(((3, 4), (2, 2)), queries=70, batch=1, points=2, reference=reference, place="border")
    assert max(problem.errors(torch.float32, "triton", DEVICE, deterministic=True)) <= 1e-5
    inputs = problem.inputs(torch.float32, DEVICE)
    first, second = (problem.run(inputs, "triton", deterministic=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_deterministic_gradients_of_any_magnitude():
    problem = Problem(((3, 4),), queries=20, batch=1, points=2)
    value, locations, weights = problem.inputs(torch.float32, DEVICE)
    plain = problem.run([value, locations, weights], "triton", deterministic=False)
    for size in (1e-12, 1e12):
        scaled = problem.run([value, locations, weights * size], "triton", deterministic=True)
        assert relative_error(scaled[1] / size, plain[1].double()) <= 1e-5
    zero = problem.run([value, locations, weights * 0], "triton", deterministic=True)
    assert not zero[1].any()
    spoilt = problem.run([value, locations, weights * torch.inf], "triton", deterministic=True)
    assert spoilt[1].isnan().all()


def test_tuning_leaves_no_trace_in_the_results(monkeypatch):
    runs = []

    def bench(call, quantiles):
        call()
        runs.append(call)
        return [1.0, 1.0, 1.0]

    monkeypatch.setattr(triton_backend, "_can_tune", lambda: True)
    for kernel in (triton_backend.kernels.forward_kernel, triton_backend.kernels.backward_kernel):
        monkeypatch.setitem(kernel.__dict__, "do_bench", bench)  # a cached property
        monkeypatch.setattr(kernel, "cache", {})
        monkeypatch.setattr(kernel, "cache_results", False)
    problem = Problem(((3, 4), (2, 2)), queries=5, batch=1, heads=1, channels=32, points=2, reference=4)
    assert max(problem.errors(torch.float32, "triton", DEVICE)) <= 1e-5
    first = len(runs)
    assert first >= 8  # several configurations, both kernels
    assert max(problem.errors(torch.float32, "triton", DEVICE)) <= 1e-5
    assert len(runs) == first


def test_torch_asks_for_determinism(monkeypatch):
    seen = []
    launch = triton_backend._Problem.launch

    def record(self, kernel, args, constants, tuned):
        seen.append((constants.get("FIXED_POINT"), tuned))
        launch(self, kernel, args, constants, tuned)

    monkeypatch.setattr(triton_backend._Problem, "launch", record)
    problem = Problem(((3, 4),), queries=3)
    inputs = problem.inputs(torch.float32, DEVICE)
    problem.run(inputs, "triton")
    torch.use_deterministic_algorithms(True)
    try:
        problem.run(inputs, "triton")
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(None, True), (False, True), (None, False), (True, False)]


@pytest.mark.parametrize("reference", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_buffers_are_written_whole_and_not_beyond(monkeypatch, reference, dtype):
    empty, margin, buffers = torch.empty, 64, []

    def poisoned(shape, *, dtype, device):
        count = torch.Size(shape).numel()
        buffer = torch.full((count + 2 * margin,), torch.nan, dtype=dtype, device=device)
        buffers.append(buffer)
        return buffer[margin : margin + count].view(shape)

    problem = Problem(((4, 5), (2, 3)), queries=11, heads=1, points=2, reference=reference)
    inputs = problem.inputs(dtype, DEVICE)
    expected = problem.run(inputs, "triton")
    monkeypatch.setattr(triton_backend.torch, "empty", poisoned)
    results = problem.run(inputs, "triton")
    monkeypatch.setattr(triton_backend.torch, "empty", empty)
    assert len(buffers) >= 3
    for result, same in zip(results, expected):
        torch.testing.assert_close(result, same)
    for buffer in buffers:
        assert buffer[:margin].isnan().all() and buffer[-margin:].isnan().all()
        assert buffer[margin:-margin].isfinite().all()


def test_nothing_outside_a_level_or_image_is_read():
    problem = Problem(((3, 4), (2, 5)), place="border")
    value, locations, weights = problem.inputs(torch.float32, DEVICE)
    expected = problem.call([value, locations, weights], "triton")
    gap = torch.full_like(value[:, :3], torch.nan)
    poisoned = torch.cat((gap, value[:, :12], gap, value[:, 12:], gap), 1)
    starts = torch.tensor((3, 18), device=DEVICE)
    with use_backend("triton"):
        result = ms_deform_attn(poisoned, problem.shapes, starts, locations, weights)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_infinite_locations_lie_outside():
    problem = Problem(((3, 4), (2, 2)))
    value, locations, weights = problem.inputs(torch.float32, DEVICE)
    locations[:, :, :, :, 0, 0] = torch.inf
    locations[:, :, :, :, 1, 1] = -torch.inf
    output, *gradients = problem.run([value, locations, weights], "triton")
    with use_backend("triton"):
        visible = ms_deform_attn(value, problem.shapes, None, locations[..., 2:, :], weights[..., 2:])
    torch.testing.assert_close(output, visible)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][:, :, :, :, :2].any() and not gradients[2][..., :2].any()


def test_nan_location_gives_nan_in_its_query_and_head_only():
    problem = Problem(((3, 4), (2, 2)))
    value, locations, weights = problem.inputs(torch.float32, DEVICE)
    clean = problem.call([value, locations, weights], "triton").unflatten(-1, (problem.heads, -1))
    locations[1, 3, 0, 1, 2, 1] = torch.nan
    output, grad_value, *_ = problem.run([value, locations, weights], "triton")
    output = output.unflatten(-1, (problem.heads, -1))
    assert output[1, 3, 0].isnan().all()
    output[1, 3, 0] = clean[1, 3, 0]
    torch.testing.assert_close(output, clean, rtol=0, atol=0)
    assert grad_value.isfinite().all()


@pytest.mark.parametrize("size", [(500, 500), (1 << 16, 1 << 16), (1 << 32, 1 << 32), ((1 << 32) + 2, 2)])
def test_a_level_that_does_not_fit_gives_nan_not_a_wild_read(size):
    """Also where products or casts of its sizes would wrap around to something that fits."""
    value, locations, weights = Problem(((3, 4), (2, 2))).inputs(torch.float32, DEVICE)
    starts = torch.tensor((0, 12), device=DEVICE)
    with use_backend("triton"):
        result = ms_deform_attn(value, torch.tensor(((3, 4), size), device=DEVICE), starts, locations, weights)
    assert result.isnan().all()


@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}])
def test_no_images_or_queries(reference, sizes):
    problem = Problem(((3, 4), (2, 2)), reference=reference, **sizes)
    output, *gradients = problem.run(problem.inputs(torch.float32, DEVICE), "triton")
    assert output.shape == (problem.batch, problem.queries, 16)
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("reference", [0, 4])
def test_strided_inputs(reference):
    problem = Problem(((3, 4), (2, 5)), points=1, reference=reference)
    inputs = problem.inputs(torch.float32, DEVICE)
    strided = [torch.stack((tensor, tensor), -1).transpose(0, 1)[..., 1].transpose(0, 1) for tensor in inputs]
    for result, expected in zip(problem.run(strided, "triton"), problem.run(inputs, "triton")):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reference", [0, 2])
def test_query_order_changes_nothing(reference):
    problem = Problem(((5, 6), (2, 3)), queries=36, batch=1, points=2, reference=reference)
    tensors = [tensor.requires_grad_() for tensor in problem.inputs(torch.float32, DEVICE)]
    entry = ms_deform_attn_fused if reference else ms_deform_attn
    orders = (None, tiled_query_order(problem.shapes, DEVICE, tile=4))
    with use_backend("triton"):
        results = []
        for order in orders:
            output = entry(tensors[0], problem.shapes, None, *tensors[1:], query_order=order)
            results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    for plain, ordered in zip(*results):
        torch.testing.assert_close(ordered, plain, rtol=1e-5, atol=1e-6)


def test_query_order_may_be_strided():
    problem = Problem(((5, 6), (2, 3)), queries=36, batch=1, points=2)
    value, locations, weights = problem.inputs(torch.float32, DEVICE)
    order = torch.stack((tiled_query_order(problem.shapes, DEVICE),) * 2, 1).flip(0)[:, 0]
    with use_backend("triton"):
        plain = ms_deform_attn(value, problem.shapes, None, locations, weights)
        ordered = ms_deform_attn(value, problem.shapes, None, locations, weights, query_order=order)
    torch.testing.assert_close(ordered, plain)


def test_query_order_of_another_length_is_an_error():
    problem = Problem(((5, 6), (2, 3)))
    value, locations, weights = problem.inputs(torch.float32, DEVICE)
    order = tiled_query_order(problem.shapes, DEVICE)
    with use_backend("triton"), pytest.raises(ValueError, match=r"query_order \(36,\) on .* should be \(7,\)"):
        ms_deform_attn(value, problem.shapes, None, locations, weights, query_order=order)


def test_mixed_dtypes():
    problem = Problem(((4, 5), (2, 3)), heads=1, points=2, reference=4)
    inputs = problem.inputs(torch.float32, DEVICE)
    mixed = [inputs[0].bfloat16(), inputs[1], inputs[2].half(), inputs[3].bfloat16()]
    results = problem.run(mixed, "triton")
    assert [result.dtype for result in results[1:]] == [tensor.dtype for tensor in mixed]
    expected = problem.run([tensor.double() for tensor in mixed], "reference")
    for result, exact in zip(results, expected):
        assert relative_error(result, exact) <= 1e-2


def test_layer_with_tiles_equals_the_reference():
    torch.manual_seed(0)
    shapes = ((4, 5), (2, 3))
    attention = MultiScaleDeformableAttention(32, num_heads=2, num_levels=2, num_points=2, tile_queries=True)
    attention.to(DEVICE)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.2)
    value = torch.randn(2, 26, 32, device=DEVICE)
    points = torch.rand(2, 26, 2, 2, device=DEVICE)
    results = []
    for name in ("triton", "reference"):
        attention.zero_grad()
        with use_backend(name):
            output = attention(value, points, value, shapes)
            output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in attention.parameters())])
    for result, expected in zip(*results):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [4, 24, 256])
def test_other_head_dimensions_are_an_error(channels):
    problem = Problem(((3, 4),), channels=channels)
    with pytest.raises(ValueError, match=f"head dimensions 8, 16, 32, 64 and 128, not {channels}"):
        problem.call(problem.inputs(torch.float32, DEVICE), "triton")


def test_a_failing_kernel_says_what_it_was_given(monkeypatch):
    class Broken:
        def __getitem__(self, grid):
            raise ValueError("no such instruction")

    monkeypatch.setattr(triton_backend.kernels.forward_kernel, "fn", Broken())
    monkeypatch.setattr(triton_backend, "_interpreted", lambda: True)
    problem = Problem(((3, 4),), reference=2)
    with pytest.raises(RuntimeError, match=r"failed: value \(2, 12, 2, 8\) torch.float32.*no such instruction"):
        problem.call(problem.inputs(torch.float32, DEVICE), "triton")


def test_automatic_choice_agrees():
    problem = Problem(((4, 5), (2, 3)), heads=1, points=2, reference=2)
    inputs = problem.inputs(torch.float32, DEVICE)
    torch.testing.assert_close(problem.call(inputs, "auto"), problem.call(inputs, "triton"), rtol=1e-5, atol=1e-5)
