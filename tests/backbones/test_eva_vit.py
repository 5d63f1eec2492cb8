"""Windowed EVA-02 blocks and the simple feature pyramid."""

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from polydet.backbones.eva_vit import EvaViT, merge, partition, run_block
from polydet.backbones.simple_fpn import SimpleFeaturePyramid

TINY = {"depth": 3, "embed_dim": 48, "num_heads": 2, "img_size": 56, "ref_feat_shape": (4, 4)}
NAME = "eva02_tiny_patch14_224"


def tiny(**kwargs):
    torch.manual_seed(0)
    model = EvaViT(NAME, weights=None, model_kwargs=TINY, **{"window": 4, "global_blocks": (2,), **kwargs})
    return model.eval()


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 5)])
def test_windows_come_back(size):
    x = torch.randn(2, *size, 6)
    windows = partition(x, 4)
    assert windows.shape[1] == 16
    assert merge(windows, 4, *size).equal(x)
    # the first window is the upper left corner
    height, width = min(4, size[0]), min(4, size[1])
    assert windows[0].view(4, 4, 6)[:height, :width].equal(x[0, :height, :width])


def test_all_global_equals_timm():
    """With every block global, square images at the reference size are timm's own forward without the class token."""
    model = tiny(patch_size=14, global_blocks=(0, 1, 2), canvas=56)
    reference = timm.create_model(NAME, dynamic_img_size=True, num_classes=0, class_token=False, **TINY).eval()
    state = {k: v for k, v in model.body.state_dict().items() if k != "pos_embed"}
    reference.load_state_dict(state, strict=False)
    with torch.no_grad():
        reference.pos_embed.copy_(model.body.pos_embed[:, 1:])
        image = torch.randn(2, 3, 56, 56)
        expected = reference.forward_intermediates(image, indices=1, norm=False, intermediates_only=True)[0]
        torch.testing.assert_close(model(image)["last"], expected, atol=1e-5, rtol=1e-4)


def test_windows_do_not_see_each_other():
    model = tiny()
    block, rope = model.body.blocks[0], model.body.rope.get_embed([4, 4])
    x = torch.randn(1, 8, 8, 48)
    with torch.no_grad():
        before = run_block(block, x, rope, 4)
        x[:, :4, :4] += 1
        after = run_block(block, x, rope, 4)
    assert after[:, 4:].equal(before[:, 4:]) and after[:, :, 4:].equal(before[:, :, 4:])
    # each window is a small image of its own
    with torch.no_grad():
        alone = run_block(block, x[:, 4:, :4], rope, 0)
    torch.testing.assert_close(after[:, 4:, :4], alone)


def test_patch_is_resized_bicubically():
    torch.manual_seed(0)
    old = timm.create_model(NAME, num_classes=0, dynamic_img_size=True, **TINY).patch_embed.proj.weight
    model = tiny(patch_size=16)
    new = model.body.patch_embed.proj.weight
    torch.testing.assert_close(new, F.interpolate(old, size=(16, 16), mode="bicubic", align_corners=False))


@pytest.mark.parametrize("size", [(64, 64), (50, 100)])
def test_pyramid(size):
    model = SimpleFeaturePyramid(tiny(checkpointing=True, drop_path_rate=0.1).train(), out_channels=16)
    maps = model(torch.randn(2, 3, *size))
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    shapes = {"p2": 4.0, "p3": 2.0, "p4": 1.0, "p5": 0.5, "p6": 0.25}
    assert list(maps) == list(shapes)
    for name, factor in shapes.items():
        expected = tuple(-int(-(n * factor) // 1) for n in (rows, columns))
        assert maps[name].shape == (2, 16, *expected)
        assert model.output_shape()[name] == ShapeSpec(channels=16, stride=int(16 / factor))
    sum(m.sum() for m in maps.values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert not silent


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="has 3 blocks; there are no blocks \\[7\\]"):
        tiny(global_blocks=(2, 7))
    with pytest.raises(ValueError, match="stride 24 cannot be made"):
        SimpleFeaturePyramid(tiny(), strides=(24,))


def rotated(x, height, width, grid):
    """Rotary positions written out: half the channels turn by the row, half by the column, in pairs of neighbours."""
    count = x.shape[-1] // 4
    rates = 10000.0 ** (-torch.arange(count) / count)
    rows = torch.arange(height)[:, None].expand(height, width).flatten() / height * grid
    columns = torch.arange(width)[None].expand(height, width).flatten() / width * grid
    angles = torch.cat((rows[:, None] * rates, columns[:, None] * rates), dim=1)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones(()), angles)
    return torch.view_as_real(turned).flatten(-2)


def test_global_positions_span_the_image_where_there_is_no_canvas():
    model = tiny(patch_size=14, canvas=None, out_norm=True)
    attention = model.body.blocks[2].attn
    x = torch.randn(1, 6 * 9, 48)
    heads = [layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in project(attention)]
    query, key = (rotated(t, 6, 9, 4) for t in heads[:2])
    expected = attention.proj(F.scaled_dot_product_attention(query, key, heads[2]).transpose(1, 2).flatten(2))
    with torch.no_grad():
        torch.testing.assert_close(attention(x, rope=model._global_positions(6, 9)), expected, atol=1e-5, rtol=1e-4)
    torch.nn.init.constant_(model.out_norm.bias, 3.0)
    with torch.no_grad():
        found = model(torch.randn(1, 3, 84, 126))["last"]
    torch.testing.assert_close(found.mean(1), torch.full((1, 6, 9), 3.0), atol=1e-4, rtol=0)


def project(attention):
    """Query, key and value projections as functions."""
    if attention.qkv is None:
        return [lambda x, p=p: p(x) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
    weights = attention.qkv.weight.chunk(3)
    biases = attention.q_bias, attention.k_bias, attention.v_bias
    return [lambda x, w=w, b=b: F.linear(x, w, b) for w, b in zip(weights, biases)]


def test_the_released_pyramid_is_activated():
    backbone = tiny()
    pyramid = SimpleFeaturePyramid(backbone, 16, activated=True)
    assert not any(m.bias is not None for m in pyramid.scales.modules() if isinstance(m, torch.nn.Conv2d))
    x = torch.randn(1, 48, 6, 9)

    def norm(x, layer):
        return F.layer_norm(x.permute(0, 2, 3, 1), layer.weight.shape, layer.weight, layer.bias, 1e-6).permute(
            0, 3, 1, 2
        )

    def head(x, layers):
        x = F.gelu(norm(F.conv2d(x, layers[0].weight), layers[1]))
        return norm(F.conv2d(x, layers[3].weight, padding=1), layers[4])

    finest, coarsest = pyramid.scales[0], pyramid.scales[4]
    y = x
    for start in (0, 4):
        y = F.conv2d(F.interpolate(y, scale_factor=2), finest[start + 1].weight, padding=1)
        y = F.gelu(norm(y, finest[start + 2]))
    torch.testing.assert_close(finest(x), head(y, finest[8:]))
    y = F.conv2d(F.max_pool2d(x, 3, 2, 1), coarsest[1].weight, stride=2, padding=1)
    torch.testing.assert_close(coarsest(x), head(F.gelu(norm(y, coarsest[2])), coarsest[4:]))
    torch.testing.assert_close(pyramid.scales[2](x), head(x, pyramid.scales[2]))
