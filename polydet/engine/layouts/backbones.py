"""Files of a backbone alone: timm's, torchvision's, MIIL's, efficientnet_pytorch's, Detectron2's and Caffe2's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.modeling import ResNet
from torch import Tensor, nn

from polydet.backbones import TimmBackbone
from polydet.engine.layouts.registry import Converted, Layout, StateDict, register_layout

_FIRST = ("conv1.weight", "stem.conv1.weight", "_conv_stem.weight", "conv_stem.weight", "patch_embed.proj.weight")
_CLASSIFIER = re.compile(
    r"^_?(fc|head|classifier|pred)\d*[._]|^stem\.fc\.|^(_bn1|bn2|_?conv_head|norm)\.|^stem\.conv1\.bias$"
    r"|num_batches_tracked$"
)
_DETECTOR = re.compile(r"^(fpn_|rpn_|conv_rpn|fc[67]_|bbox_pred|cls_score|retnet_|conv5_mask|kps_)")
_NO_USE = "the backbone's classifier of images"


def _is_caffe2(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("res2_0_branch") for key in state)


def _is_backbone(state: Mapping[str, Tensor]) -> bool:
    """By its first convolution, which has no module before it."""
    return not _is_caffe2(state) and any(key in state for key in _FIRST)


def _timm_backbones(model: nn.Module) -> dict[str, TimmBackbone]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TimmBackbone)}


def _resnets(model: nn.Module) -> dict[str, ResNet]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ResNet)}


def _has_one(model: nn.Module) -> bool:
    return len(_timm_backbones(model)) + len(_resnets(model)) == 1


def _convert(state: StateDict, model: nn.Module) -> Converted:
    resnets = _resnets(model)
    if not resnets:
        ((name, backbone),) = _timm_backbones(model).items()
        left_out = [key for key in state if _CLASSIFIER.search(key)]
        return _below(f"{name}.", backbone.read(state), left_out)
    if "stem.conv1.weight" not in state:
        raise ValueError(
            "the model has Detectron2's own ResNet, for which ImageNetPretrained/torchvision/R-50.pkl has torchvision's"
        )
    ((name, _),) = resnets.items()
    left_out = [key for key in state if _CLASSIFIER.search(key)]
    return _below(f"{name}.", {k: v for k, v in state.items() if k not in left_out}, left_out)


def _convert_caffe2(state: StateDict, model: nn.Module) -> Converted:
    """Batch norms of which there is only scale and shift have mean 0 and variance 1."""
    if any(_DETECTOR.search(key) for key in state):
        raise ValueError(
            "it is a detector of Detectron 1, whose boxes and anchors end a pixel later: Detectron2's model zoo has "
            "the same detectors trained again"
        )
    resnets = _resnets(model)
    if not resnets:
        ((name, backbone),) = _timm_backbones(model).items()
        return _below(f"{name}.", backbone.read(state), [])  # says why not
    ((name, resnet),) = resnets.items()
    _check_computes_alike(resnet, model)
    renamed, _ = convert_c2_detectron_names(state)
    left_out = [key for key in renamed if _CLASSIFIER.search(key)]
    found = {key: value for key, value in renamed.items() if key not in left_out}
    for key in [k for k in found if k.endswith(".norm.weight")]:
        stem = key.removesuffix("weight")
        found.setdefault(f"{stem}running_mean", torch.zeros_like(found[key]))
        found.setdefault(f"{stem}running_var", torch.ones_like(found[key]) - 1e-5)  # as Detectron2's frozen norm
    return _below(f"{name}.", found, left_out)


def _check_computes_alike(resnet: ResNet, model: nn.Module) -> None:
    block = resnet.res3[0]
    if hasattr(block, "conv3") and tuple(block.conv1.stride) == (1, 1) and block.conv2.groups == 1:
        raise ValueError(
            "its ResNet strides in the 1x1 convolutions: set model.backbone.bottom_up.stages.stride_in_1x1=True"
        )
    if getattr(model, "input_format", None) == "RGB":
        raise ValueError(
            "its ResNet reads BGR images: set model.input_format=BGR, model.pixel_mean=[103.53,116.28,123.675], "
            "model.pixel_std=[1,1,1] and image_format=BGR of both mappers"
        )


def _below(prefix: str, state: StateDict, left_out: list[str]) -> Converted:
    found = {prefix + key: value for key, value in state.items()}
    return Converted(found, {_NO_USE: left_out} if left_out else {}, covers=[f"{prefix}{k}" for k in state])


register_layout(Layout("a backbone alone", _is_backbone, _has_one, _convert))
register_layout(Layout("a ResNet in Caffe2's names", _is_caffe2, _has_one, _convert_caffe2))
