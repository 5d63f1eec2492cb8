"""Backbones: timm's own features through Detectron2's interface, freezing, weights, necks."""

import re

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import Backbone
from torch import nn

from polydet.backbones import ChannelMapper, TimmBackbone, fpn_p3_p7

ALL = ("res2", "res3", "res4", "res5")
SWIN = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_maps_are_timms(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, ALL, weights=None).eval()
    assert isinstance(backbone, Backbone)
    reference = timm.create_model(name, features_only=True, pretrained=False).eval()
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, maps = reference(image), backbone(image)
    for key, value in zip(reversed(ALL), reversed(expected)):
        torch.testing.assert_close(maps[key], value, atol=1e-4, rtol=1e-4)
        shape = backbone.output_shape()[key]
        assert maps[key].shape[1] == shape.channels and maps[key].shape[2] == 64 // shape.stride


def torchvision_key(key):
    """timm's name of a parameter of torchvision's Swin."""
    index, rest = re.fullmatch(r"features\.(\d+)\.(.*)", key).groups()
    stage, blocks = divmod(int(index), 2)
    if not stage and not blocks:
        return "patch_embed." + {"0": "proj", "2": "norm"}[rest[0]] + rest[1:]
    if not blocks:
        return f"layers_{stage}.downsample.{rest}"
    return f"layers_{stage}.blocks.{rest}".replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")


@pytest.mark.parametrize("size", [(448, 448), (260, 300)])  # whole windows or not; more than one window in each stage
def test_swin_shifts_windows_as_torchvision(size):
    torch.manual_seed(0)
    reference = torchvision.models.SwinTransformer([4, 4], 32, [2] * 4, [1, 1, 2, 4], [7, 7]).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    small = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 4)}
    backbone = TimmBackbone(SWIN, ALL, weights=None, model_kwargs=small).eval()
    state = {k: v for k, v in reference.state_dict().items() if k.startswith("features.") and "_index" not in k}
    backbone.body.load_state_dict({torchvision_key(k): v for k, v in state.items()})
    x = image = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = list(backbone(image).items())
        for layers in reference.features:
            x = layers(x)
            if layers is not reference.features[0] and isinstance(layers, nn.Sequential):
                name, value = maps.pop(0)
                torch.testing.assert_close(value, x.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)
                assert value.shape[1] == backbone.output_shape()[name].channels
    assert not maps


@pytest.mark.parametrize("name", ["resnet18", SWIN])
def test_any_size_rounds_up(name):
    maps = TimmBackbone(name, ("res2", "res5"), weights=None)(torch.randn(1, 3, 33, 70))
    assert maps["res2"].shape[2:] == (9, 18) and maps["res5"].shape[2:] == (2, 3)


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen", "learning"),
    [
        ("resnet18", 1, {"conv1", "bn1"}, {"layer1"}),
        ("resnet18", 2, {"conv1", "bn1", "layer1"}, {"layer2"}),
        ("mobilenetv2_100", 2, {"conv_stem", "blocks.0", "blocks.1"}, {"blocks.2"}),
        (SWIN, 1, {"patch_embed"}, {"layers_0"}),
        (SWIN, 2, {"patch_embed", "layers_0"}, {"layers_1"}),
    ],
)
def test_frozen_stages_are_detectron2s(name, freeze_at, frozen, learning):
    body = TimmBackbone(name, weights=None, norm="train", freeze_at=freeze_at).body
    for prefix in frozen:
        assert not any(p.requires_grad for p in body.get_submodule(prefix).parameters()), prefix
        assert not any(isinstance(m, nn.BatchNorm2d) for m in body.get_submodule(prefix).modules()), prefix
    for prefix in learning:
        assert all(p.requires_grad for p in body.get_submodule(prefix).parameters()), prefix


@pytest.mark.parametrize(("stride", "strides"), [(16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])])
def test_dilated_maps_keep_their_names(stride, strides):
    torch.manual_seed(0)
    backbone = TimmBackbone(
        "resnet50", ALL, weights=None, norm="train", freeze_at=4, model_kwargs={"output_stride": stride}
    ).eval()
    assert [shape.stride for shape in backbone.output_shape().values()] == strides
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert {name: 64 // m.shape[-1] for name, m in maps.items()} == dict(zip(ALL, strides))
    assert not any(p.requires_grad for p in backbone.body.layer3.parameters())
    assert all(p.requires_grad for p in backbone.body.layer4.parameters())
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, stride == 8, True])
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    c5 = nn.Sequential(*list(reference.eval().children())[:-2])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)["res5"], c5(image), rtol=1e-4, atol=1e-4)
    assert list(ChannelMapper(backbone, ("res5",), 32).output_shape()) == [f"p{strides[-1].bit_length() - 1}"]
    with pytest.raises(ValueError, match=r"'res4', 'res5'.*same stride"):
        ChannelMapper(backbone, ("res4", "res5"), 32)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_frozen_norms_do_not_move_in_training(name):
    backbone = TimmBackbone(name, weights=None).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert before and all(torch.equal(v, before[k]) for k, v in backbone.named_buffers())
    assert not any("bn" in name for name, p in backbone.named_parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_norms_in_evaluation_mode_train_their_affine_part_only(name):
    torch.manual_seed(0)
    backbone = nn.Sequential(TimmBackbone(name, weights=None, norm="eval", freeze_at=1)).train()  # as part of a model
    image = torch.randn(2, 3, 64, 64)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    maps = backbone(image)
    sum(m.square().mean() for m in maps.values()).backward()
    optimizer.step()
    norms = {k: m for k, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms and not any(m.training for m in norms.values())
    for key, value in backbone.named_buffers():
        assert torch.equal(value, before[key]), key
    last = list(norms)[-1]
    assert all(p.grad is not None and p.grad.any() for p in norms[last].parameters())
    assert not torch.equal(norms[last].weight.detach(), before[f"{last}.weight"])
    # what it computes is what frozen norms compute, and the first stage is frozen as a whole
    frozen = nn.Sequential(TimmBackbone(name, weights=None, norm="frozen"))
    frozen.load_state_dict(before, strict=False)
    for key, value in frozen.eval()(image).items():
        torch.testing.assert_close(maps[key], value)
    assert "0.body.bn1" not in norms


def test_checkpointing_changes_memory_not_gradients():
    torch.manual_seed(0)
    plain = TimmBackbone("resnet18", weights=None)
    saving = TimmBackbone("resnet18", weights=None, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for backbone in (plain, saving):
        backbone.train()(image)["res5"].square().sum().backward()
    for (key, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


def test_out_norm_normalises_channels():
    maps = TimmBackbone(SWIN, ("res4",), weights=None, out_norm=True)(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(maps["res4"].mean(1), torch.zeros(1, 4, 4), atol=1e-4, rtol=0)


def test_weights_come_from_a_file_or_the_weights_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    by_path = TimmBackbone("resnet18", weights=str(tmp_path / "resnet18.pth"))
    monkeypatch.setenv("POLYDET_WEIGHTS", str(tmp_path))
    by_folder = TimmBackbone("resnet18")
    for backbone in (by_path, by_folder):
        torch.testing.assert_close(backbone.body.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_missing_weights_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match="POLYDET_WEIGHTS"):
        TimmBackbone("resnet18.tv_in1k")
    with pytest.raises(RuntimeError, match="no such file"):
        TimmBackbone("resnet18", weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match="res7"):
        TimmBackbone("resnet18", ("res7",), weights=None)
    with pytest.raises(ValueError, match="eval, train or sync"):
        TimmBackbone("resnet18", weights=None, norm="batch")


def test_channel_mapper_builds_further_levels_from_the_last_map():
    neck = ChannelMapper(TimmBackbone("resnet18", weights=None), out_channels=64, num_outs=5)
    maps = neck(torch.randn(1, 3, 97, 130))
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"] == list(neck.output_shape())
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (64, 13, 17), (64, 7, 9), (64, 4, 5), (64, 2, 3), (64, 1, 2),
    ]  # fmt: skip
    assert neck.extra[0][0].in_channels == 512 and neck.extra[1][0].in_channels == 64
    with pytest.raises(ValueError, match="num_outs"):
        ChannelMapper(TimmBackbone("resnet18", weights=None), num_outs=2)


def test_fpn_has_p6_from_p5_and_p7_from_relu_p6():
    fpn = fpn_p3_p7(TimmBackbone("resnet18", weights=None), 32).eval()
    maps = fpn(torch.randn(1, 3, 64, 64))
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"]
    torch.testing.assert_close(maps["p6"], fpn.top_block.p6(maps["p5"]))
    torch.testing.assert_close(maps["p7"], fpn.top_block.p7(maps["p6"].relu()))
