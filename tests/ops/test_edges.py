"""Empty inputs, strides, non-finite locations, and memory next to the inputs: on the CPU path and the reference."""

import pytest
import torch
from msda_inputs import Problem

from polydet.ops import ms_deform_attn, ms_deform_attn_fused, use_backend

BACKENDS = ["cpu", "reference"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}])
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_no_images_or_queries(backend, sizes, reference):
    problem = Problem(((3, 4), (2, 2)), reference=reference, **sizes)
    output, *gradients = problem.run(problem.inputs(torch.float32), backend)
    assert output.shape == (problem.batch, problem.queries, problem.heads * problem.channels)
    assert all(not gradient.any() for gradient in gradients)


def test_a_level_of_no_size(backend):
    problem = Problem(((3, 4), (0, 5), (2, 2)))
    assert max(problem.errors(torch.float32, backend)) <= 1e-5


def test_one_query_one_level_one_point(backend):
    problem = Problem(((1, 1),), batch=1, queries=1, heads=1, points=1)
    assert max(problem.errors(torch.float32, backend)) <= 1e-5


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_strided_inputs(backend, reference):
    problem = Problem(((3, 4), (2, 5)), reference=reference)
    inputs = problem.inputs(torch.float32)
    strided = [torch.stack((tensor, tensor), -1).transpose(0, 1)[..., 1].transpose(0, 1) for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in strided)
    for result, expected in zip(problem.run(strided, backend), problem.run(inputs, backend)):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_infinite_locations_lie_outside(backend):
    problem = Problem(((3, 4), (2, 2)))
    value, locations, weights = problem.inputs(torch.float32)
    locations[:, :, :, :, 0, 0] = torch.inf
    locations[:, :, :, :, 1, 1] = -torch.inf
    output, *gradients = problem.run([value, locations, weights], backend)
    visible = ms_deform_attn(value, problem.shapes, None, locations[..., 2:, :], weights[..., 2:])
    torch.testing.assert_close(output, visible)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][:, :, :, :, :2].any() and not gradients[2][..., :2].any()


def test_nan_location_gives_nan_in_its_query_and_head_only(backend):
    problem = Problem(((3, 4), (2, 2)))
    value, locations, weights = problem.inputs(torch.float32)
    clean = problem.call([value, locations, weights], backend).unflatten(-1, (problem.heads, -1))
    locations[1, 3, 0, 1, 2, 1] = torch.nan
    output, grad_value, *_ = problem.run([value, locations, weights], backend)
    output = output.unflatten(-1, (problem.heads, -1))
    assert output[1, 3, 0].isnan().all()
    output[1, 3, 0] = clean[1, 3, 0]
    torch.testing.assert_close(output, clean, rtol=0, atol=0)
    assert grad_value.isfinite().all()


def test_nothing_outside_a_level_is_read(backend):
    problem = Problem(((3, 4), (2, 5)), place="border", batch=1)
    value, locations, weights = problem.inputs(torch.float32)
    expected = problem.call([value, locations, weights], backend)
    gap = torch.full_like(value[:, :3], torch.nan)
    poisoned = torch.cat((gap, value[:, :12], gap, value[:, 12:], gap), 1)
    result = ms_deform_attn(poisoned, problem.shapes, torch.tensor((3, 18)), locations, weights)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_a_level_that_does_not_fit_is_an_error():
    value, locations, weights = Problem(((3, 4), (2, 2))).inputs(torch.float32)
    with pytest.raises(ValueError, match="level 1 of 2 x 3 starting at 12 does not fit a value tensor of 16 tokens"):
        ms_deform_attn(value, torch.tensor(((3, 4), (2, 3))), None, locations, weights)
    with pytest.raises(ValueError, match="make 18 tokens, value has 16"):
        ms_deform_attn(value, ((3, 4), (2, 3)), None, locations, weights)


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"queries": 5}, {"points": 2}, {"batch": 1}])
def test_shapes_that_do_not_belong_together_are_an_error(wrong):
    shapes = ((3, 4), (2, 2))
    value, _, weights = Problem(shapes).inputs(torch.float32)
    locations = Problem(shapes, **wrong).inputs(torch.float32)[1]
    with pytest.raises(ValueError, match="does not go with sampling"):
        ms_deform_attn(value, shapes, None, locations, weights)


def test_reference_points_on_another_device_are_an_error():
    problem = Problem(((3, 4), (2, 2)), reference=2)
    value, points, offsets, logits = problem.inputs(torch.float32)
    with pytest.raises(ValueError, match="reference_points are on meta, value is on cpu"):
        ms_deform_attn_fused(value, problem.shapes, None, points.to("meta"), offsets, logits)
