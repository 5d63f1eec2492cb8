"""The attention layer: start, checkpoints of Deformable-DETR, equality with HuggingFace's layer, analysis."""

import pytest
import torch
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention as HuggingFaceLayer,
)

from polydet.ops import MultiScaleDeformableAttention, ms_deform_attn, tiled_query_order

SHAPES = ((4, 6), (2, 3))


def inputs(numbers):
    torch.manual_seed(0)
    reference_points = torch.rand(2, 5, 2, numbers)
    return torch.randn(2, 5, 32), reference_points, torch.randn(2, 30, 32)


@pytest.mark.parametrize("numbers", [2, 4])
def test_equals_huggingface_with_its_weights(numbers):
    config = DeformableDetrConfig(d_model=32, num_feature_levels=2)
    theirs = HuggingFaceLayer(config, num_heads=4, n_points=3)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    ours.load_state_dict(theirs.state_dict())
    query, reference_points, value = inputs(numbers)
    padding = torch.rand(2, 30) > 0.7
    position = torch.randn_like(query)
    result = ours(query, reference_points, value, SHAPES, padding_mask=padding, query_pos=position)
    expected, weights = theirs(
        query,
        attention_mask=~padding,
        encoder_hidden_states=value,
        position_embeddings=position,
        reference_points=reference_points,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
        level_start_index=torch.tensor((0, 24)),
    )
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.sampling(query, reference_points, SHAPES, position)[1], weights)


def test_sampling_is_what_forward_does():
    attention = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight)
    query, reference_points, value = inputs(4)
    locations, weights = attention.sampling(query, reference_points, SHAPES)
    assert locations.shape == (2, 5, 4, 2, 3, 2)
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(2, 5, 4))
    sampled = ms_deform_attn(attention.value_proj(value).view(2, 30, 4, 8), SHAPES, None, locations, weights)
    expected = attention(query, reference_points, value, torch.tensor(SHAPES))
    torch.testing.assert_close(attention.output_proj(sampled), expected)


def test_starts_like_deformable_detr():
    attention = MultiScaleDeformableAttention(64, num_heads=8, num_levels=3, num_points=4)
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()
    torch.testing.assert_close(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    torch.testing.assert_close(offsets[1, 0, 0], torch.tensor([1.0, 1]))
    torch.testing.assert_close(offsets[2, 2, 3], torch.tensor([0.0, 4]))
    query = torch.randn(1, 3, 64)
    _, weights = attention.sampling(query, torch.rand(1, 3, 3, 2), ((2, 2),) * 3)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 12))


def test_padding_counts_as_zero_and_gets_no_gradient():
    attention = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    query, reference_points, value = inputs(2)
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[1, 5:] = True
    value = value.masked_fill(padding[..., None], torch.nan).requires_grad_()
    output = attention(query, reference_points, value, SHAPES, padding_mask=padding)
    assert output.isfinite().all()
    output.sum().backward()
    assert not value.grad[padding].any() and value.grad[~padding].any()


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="embed_dim 30 is not a multiple of num_heads 4"):
        MultiScaleDeformableAttention(30, num_heads=4)


def test_reference_points_of_wrong_shape_are_named():
    attention = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    query, reference_points, value = inputs(2)
    with pytest.raises(ValueError, match=r"reference_points \(2, 5, 1, 2\) should be \(2, 5, 2, 2\)"):
        attention(query, reference_points[:, :, :1], value, SHAPES)


def test_tiled_order_visits_every_query_tile_by_tile():
    order = tiled_query_order(((5, 9), (3, 2)), tile=4)
    assert order.dtype == torch.int32
    assert torch.equal(order.sort().values, torch.arange(51, dtype=torch.int32))
    assert order[:16].tolist() == [9 * y + x for y in range(4) for x in range(4)]
    assert order[45:].tolist() == list(range(45, 51))


@pytest.mark.parametrize("shapes", [SHAPES, torch.tensor(SHAPES)], ids=["pairs", "tensor"])
def test_tiled_layer_gives_the_same(shapes):
    torch.manual_seed(0)
    plain = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    tiled = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3, tile_queries=True)
    tiled.load_state_dict(plain.state_dict())
    value = torch.randn(2, 30, 32)
    points = torch.rand(2, 30, 2, 2)
    torch.testing.assert_close(tiled(value, points, value, shapes), plain(value, points, value, shapes))
