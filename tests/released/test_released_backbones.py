"""Files of a backbone alone as the start of a training: they fill the backbone, and the rest is not judged."""

import re

import pytest
import torch
from released_names import shapes_of, torchvisions
from torch import nn

from polydet.backbones import TimmBackbone
from polydet.engine import CheckpointError, load_file


def miil():
    """MIIL's ResNet-50: torchvision's names and ImageNet-21k's classes."""
    return {**torchvisions("resnet50", "", "tracked"), "fc.weight": (10450, 2048), "fc.bias": (10450,)}


def detectron2s():
    """ImageNetPretrained/torchvision/R-50.pkl."""
    found = {}
    for key, shape in torchvisions("resnet50", "", "plain").items():
        key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        key = re.sub(r"bn(\d)", r"conv\1.norm", key)
        found[key if key.startswith("res") else f"stem.{key}"] = shape
    return {**found, "stem.fc.weight": (1000, 2048), "stem.fc.bias": (1000,)}


FILES = {
    "torchvision": ("resnet18", lambda: torchvisions("resnet18", "", "tracked")),
    "MIIL": ("resnet50", miil),
    "Detectron2": ("resnet50", detectron2s),
    "efficientnet_pytorch": ("efficientnet_b0", lambda: shapes_of("backbone_efficientnet_b0")),
}
NOT_OF_MAPS = re.compile(r"(^|\.)_?fc\.|^_conv_head|^_bn1|num_batches_tracked")


class Detector(nn.Module):
    """As far as its backbone goes."""

    def __init__(self, name):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = TimmBackbone(name, ("res3", "res5"), weights=None)
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("origin", FILES)
def test_every_tensor_of_a_backbones_file_arrives(origin, tmp_path):
    name, shapes = FILES[origin]
    numbers = {key: 1000.0 + i / 8 for i, key in enumerate(sorted(shapes()))}
    torch.save({"model": {k: torch.tensor(numbers[k]).expand(s) for k, s in shapes().items()}}, tmp_path / "file.pth")
    model = Detector(name)
    ledger = load_file(model, tmp_path / "file.pth", complete=False)
    assert "a backbone alone" in ledger.source
    assert [k for k in ledger.missing if not k.startswith("head.")] == [] == ledger.unexpected
    state = model.backbone.bottom_up.state_dict()
    assert all(bool((value == value.flatten()[0]).all()) for value in state.values())
    found = {value.flatten()[0].item() for value in state.values()}
    assert not [k for k, number in numbers.items() if number not in found and not NOT_OF_MAPS.search(k)]
    with pytest.raises(CheckpointError, match="2 weights are not in the file and would be random: head"):
        load_file(model, tmp_path / "file.pth")


def test_a_backbones_file_of_another_network_is_named(tmp_path):
    state = {k: torch.ones(s) for k, s in torchvisions("resnet18", "", "plain").items()}
    torch.save(state, tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match=r"r18\.pth: a backbone alone does not fit.*other tensors than timm"):
        load_file(Detector("resnet50"), tmp_path / "r18.pth", complete=False)
