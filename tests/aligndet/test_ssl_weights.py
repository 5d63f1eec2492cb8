"""Published naming schemes, rebuilt from models, come back into timm backbones weight by weight."""

import pytest
import timm
import torch

from aligndet.ssl_weights import KINDS, convert
from polydet.backbones import TimmBackbone

MAPS = ["res2", "res3", "res4", "res5"]


def resnet_checkpoint(kind):
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    junk = torch.zeros(2)
    if kind == "moco_v2":
        named = {f"module.encoder_q.{k}": v for k, v in state.items()}
        named |= {f"module.encoder_k.{k}": junk for k in state}
        return {"state_dict": {**named, "module.encoder_q.fc.0.weight": junk, "module.queue": junk}, "epoch": 200}
    if kind == "pixpro":
        named = {f"module.encoder.{k}": v for k, v in state.items()}
        named |= {f"module.encoder_k.{k}": junk for k in state}
        return {"model": {**named, "module.projector.linear1.weight": junk}}
    named = {f"module.{k}": v for k, v in state.items()}
    return {**named, "module.projection_head.0.weight": junk, "module.prototypes.weight": junk}


@pytest.mark.parametrize("kind", ["moco_v2", "pixpro", "swav"])
def test_resnet_schemes_load_completely(kind, tmp_path):
    checkpoint = resnet_checkpoint(kind)
    torch.save(checkpoint, tmp_path / "published.pth.tar")
    weights = convert(kind, tmp_path / "published.pth.tar", tmp_path / "out.safetensors")
    assert not any(k.startswith(("module", "fc", "queue", "encoder", "proj")) for k in weights)
    backbone = TimmBackbone("resnet18", MAPS, str(tmp_path / "out.safetensors"), norm="train")
    loaded = backbone.body.state_dict()
    assert set(loaded) == set(weights)
    for key, value in weights.items():
        assert torch.equal(loaded[key], value), key


def microsoft_swin(window):
    """A small Swin under Microsoft's names: patch merging closes a stage there and opens the next one in timm."""
    torch.manual_seed(0)
    kwargs = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": window}
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32 * window, **kwargs)
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(("head.", "norm.")) or key.endswith("relative_position_index"):
            continue
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts)] = value
    return model, state


def test_simmim_loads_into_the_larger_window(tmp_path):
    source, state = microsoft_swin(6)
    published = {f"encoder.{k}": v for k, v in state.items()}
    published |= {"encoder.mask_token": torch.zeros(1, 1, 16), "decoder.0.weight": torch.zeros(3)}
    published["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(36, 36)
    torch.save({"model": published}, tmp_path / "simmim.pth")
    convert("simmim", tmp_path / "simmim.pth", tmp_path / "out.safetensors")
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", MAPS, str(tmp_path / "out.safetensors"), model_kwargs=small)
    loaded = {k.replace("layers_", "layers."): v for k, v in backbone.body.state_dict().items()}
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    for key, value in source.state_dict().items():
        if key.startswith(("head.", "norm.")) or "relative_position" in key:
            continue
        assert torch.equal(loaded[key], value), key
    assert loaded[table].shape == (169, 1) and source.state_dict()[table].shape == (121, 1)
    assert loaded[table].abs().sum() > 0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"swav"}))
def test_wrong_kind_is_refused(kind):
    with pytest.raises(KeyError, match="no key of the checkpoint"):
        KINDS[kind]({"conv1.weight": torch.zeros(1)})
