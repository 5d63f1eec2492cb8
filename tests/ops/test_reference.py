"""The readable reference against HuggingFace's function, a loop written from the definition, and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from msda_inputs import Problem, problems
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention as HuggingFaceAttention,
)

from polydet.ops import ms_deform_attn_reference, sampling_locations


def attend_by_definition(value, shapes, locations, weights):
    """Deformable DETR, eq. 3, one multiplication at a time."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(levels)]
    output = torch.zeros(batch, queries, heads, channels, dtype=value.dtype)
    for b, q, head, level, point in (
        torch.cartesian_prod(*(torch.arange(n) for n in (batch, queries, heads, levels, points)))
        .reshape(-1, 5)
        .tolist()
    ):
        height, width = shapes[level]
        x, y = (locations[b, q, head, level, point] * torch.tensor((width, height)) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                    pixel = value[b, starts[level] + row * width + column, head]
                    output[b, q, head] += weights[b, q, head, level, point] * share * pixel
    return output.flatten(2)


@settings(max_examples=15, deadline=None)
@given(problem=problems())
def test_reference_is_the_definition(problem):
    value, *rest = problem.inputs()
    weights = rest[-1]
    locations = rest[0] if not problem.reference else sampling_locations(rest[0], rest[1], problem.shapes)
    result = ms_deform_attn_reference(value, problem.shapes, None, locations, weights)
    expected = attend_by_definition(value, problem.shapes, locations, weights)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", ["inside", "border"])
def test_reference_is_huggingface(place):
    problem = Problem(((6, 5), (3, 4), (1, 1)), queries=11, heads=4, points=4, place=place)
    value, locations, weights = problem.inputs()
    result = ms_deform_attn_reference(value, torch.tensor(problem.shapes), None, locations, weights)
    shapes = torch.tensor(problem.shapes)
    expected = HuggingFaceAttention()(value, shapes, problem.shapes, None, locations, weights, 64)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_reference_gradients_of_first_and_second_order(reference):
    problem = Problem(((2, 3), (1, 2)), batch=1, queries=2, heads=1, channels=2, points=2, reference=reference)
    inputs = [tensor.requires_grad_() for tensor in problem.inputs()]

    def attend(*tensors):
        return problem.call(list(tensors), "reference")

    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_level_start_index_skips_tokens():
    problem = Problem(((2, 3), (3, 2)))
    value, locations, weights = problem.inputs()
    gap = torch.full_like(value[:, :4], torch.nan)
    starts = torch.tensor((4, 14))
    spread = torch.cat((gap, value[:, :6], gap, value[:, 6:]), 1)
    result = ms_deform_attn_reference(spread, problem.shapes, starts, locations, weights)
    torch.testing.assert_close(result, problem.call([value, locations, weights], "reference"))


def test_half_precision_values_are_summed_in_single():
    problem = Problem(((6, 5),), points=16, queries=40)
    value, locations, weights = problem.inputs(torch.bfloat16)
    result = ms_deform_attn_reference(value, problem.shapes, None, locations, weights)
    exact = ms_deform_attn_reference(value.double(), problem.shapes, None, locations.double(), weights.double())
    assert result.dtype == torch.bfloat16
    assert (result - exact).abs().max() <= exact.abs().max() * 2**-8
