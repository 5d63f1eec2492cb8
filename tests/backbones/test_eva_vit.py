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
