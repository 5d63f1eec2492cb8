"""The DETR family in its authors', detrex's, HuggingFace's and mmdetection's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from polydet.detr import DETR
from polydet.detr.checkpoint_maps import Scheme, convert, scheme_of
from polydet.engine.layouts.classes import row_names
from polydet.engine.layouts.registry import Converted, Layout, StateDict, register_layout

_NAMES: dict[Scheme, str] = {
    "official": "a DETR in its authors' names",
    "detrex": "a DETR in detrex's names",
    "transformers": "a DETR in HuggingFace's names",
    "mmdet": "a DETR in mmdetection's names",
    "mmdet2": "a DETR in mmdetection 2's names",
}


def _recognise(scheme: Scheme) -> Callable[[Mapping[str, Tensor]], bool]:
    def named_so(state: Mapping[str, Tensor]) -> bool:
        foreign = any(key.startswith(("query_head.", "detr.", "online_backbone")) for key in state)  # a paper's own
        return not foreign and scheme_of(state) == scheme

    return named_so


def _fits(model: nn.Module) -> bool:
    return isinstance(model, DETR)


def _convert(state: StateDict, model: nn.Module) -> Converted:
    assert isinstance(model, DETR)
    if "transformer.patterns.weight" in state:
        raise ValueError(
            f"it has {len(state['transformer.patterns.weight'])} patterns of content for each anchor (DAB-DETR), "
            "which no model here has: take the file without patterns"
        )
    found = convert(state, share_heads=len(model.class_heads) == 1)
    add_zero_biases(found, model)
    levels = found.get("level_embed")
    own = getattr(model, "level_embed", None)
    if levels is not None and isinstance(own, Tensor) and len(levels) != len(own):
        raise ValueError(
            f"it reads {len(levels)} levels of features, the model {len(own)}: use a config with as many "
            "(model.backbone.num_outs, and num_levels of encoder and decoder)"
        )
    return Converted(found, row_names=rows_of(found, model))


def _heed_dilation(name: str, model: nn.Module) -> None:
    """A DC5 file has the tensors of its twin without dilation, and is told by its name alone."""
    assert isinstance(model, DETR)
    strides = [shape.stride for shape in model.backbone.output_shape().values()]
    if "dc5" in name.lower() and len(strides) == 1 and strides[0] != 16:
        raise ValueError(
            f"its name says DC5, whose last stage is at stride 16, the model's is at {strides[0]}: set "
            "model.backbone.bottom_up.model_kwargs={output_stride: 16}, or rename a file that is none"
        )


def add_zero_biases(state: StateDict, model: nn.Module) -> None:
    """Fill in place: mmdetection's and detrex's necks have no bias before a norm, which is one of zero."""
    own = model.state_dict()
    for key in [k for k in state if re.match(r"backbone\.(lateral|extra)\.\d+\.0\.weight$", k)]:
        bias = key.removesuffix("weight") + "bias"
        if bias in own and bias not in state:
            state[bias] = torch.zeros(len(state[key]), dtype=state[key].dtype)


def rows_of(state: Mapping[str, Tensor], model: DETR) -> tuple[str, ...] | None:
    """Names of the rows of a released class head; a background row, which the model has too, is none of them."""
    head = state.get("class_heads.0.weight")
    own = getattr(model.class_heads[0], "weight", None)
    if head is None or not isinstance(own, Tensor):
        return None
    names = row_names(len(head) - (len(own) - model.num_classes))
    return None if names is None else tuple(names)


def _is_panoptic(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("detr.transformer.") for key in state) and "bbox_attention.q_linear.weight" in state


def _refuse_panoptic(state: StateDict, model: nn.Module) -> Converted:
    classes = len(state["detr.class_embed.weight"]) - 1
    raise ValueError(
        f"it gives masks for {classes} classes of things and stuff, no DETR here has a mask head: take the file that "
        "was trained for boxes"
    )


register_layout(Layout("DETR with a mask head", _is_panoptic, _fits, _refuse_panoptic))
for _scheme, _name in _NAMES.items():
    register_layout(Layout(_name, _recognise(_scheme), _fits, _convert, _heed_dilation))
