"""Detic's and CenterNet2's files for ScaleDet, which has CenterNet2's parts with text classifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polydet.detr.mmdet_names import swin_to_timm
from polydet.engine.layouts import Converted, Layout, register_layout
from scaledet.meta_arch import ScaleDet

StateDict = dict[str, Tensor]

_RULES = (
    (r"^backbone\.bottom_up\.base\.", "backbone.bottom_up.body."),
    (r"^proposal_generator\.centernet_head\.bbox_tower\.", "proposal_generator.head.tower."),
    (r"^proposal_generator\.centernet_head\.bbox_pred\.", "proposal_generator.head.box."),
    (r"^proposal_generator\.centernet_head\.agn_hm\.", "proposal_generator.head.heatmap."),
    (r"\.cls_score\.cls_bias$", ".cls_score.bias"),
)
_NO_USE = {
    "masks": r"^roi_heads\.mask_head\.",
    "embeddings of the trained words (the vocabulary has its own)": r"\.cls_score\.zs_weight$|\.freq_weight$",
    "the backbone's classifier of images": r"^backbone\.bottom_up\.base\.(fc|head)\.",
    "scores of image labels": r"^roi_heads\.box_predictor\.\d\.prop_score\.",
    "a classifier of fixed classes (text classifies here)": r"^roi_heads\.box_predictor\.\d\.cls_score\.(weight|bias)$",
}
_SCALE = r"proposal_generator\.centernet_head\.scales\.(\d+)\.scale$"


def recognise(state: Mapping[str, Tensor]) -> bool:
    """CenterNet2's class-agnostic first stage."""
    return "proposal_generator.centernet_head.agn_hm.weight" in state


def from_detic(state: StateDict, model: nn.Module) -> Converted:
    """Tensors by ScaleDet's names.

    Raises:
        ValueError: Detectron2's own ResNet in the file, whose first convolutions of a stage have its stride.
    """
    if any(key.startswith("backbone.bottom_up.stem.") for key in state):
        raise ValueError(
            "its backbone is Detectron2's own ResNet on BGR images, with strides in other convolutions than timm's: "
            "train.init.skip=[backbone.bottom_up] starts from the rest of it"
        )
    left_out = {what: [k for k in state if re.search(pattern, k)] for what, pattern in _NO_USE.items()}
    dropped = {key for keys in left_out.values() for key in keys}
    scales = sorted((int(match[1]), key) for key in state if (match := re.match(_SCALE, key)))
    found = {_rename(k): v for k, v in state.items() if k not in dropped and not re.match(_SCALE, k)}
    if scales:
        found["proposal_generator.head.scales"] = torch.stack([state[key].reshape(()) for _, key in scales])
    for key in [k for k in found if k.endswith(".cls_score.bias")]:
        found[key] = found[key].reshape(())
    prefix = "backbone.bottom_up."
    swin = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    if any(k.startswith("patch_embed.") for k in swin):
        found = {k: v for k, v in found.items() if not k.startswith(prefix)}
        found |= {f"backbone.{k}": v for k, v in swin_to_timm(swin).items()}
    return Converted(found, {what: keys for what, keys in left_out.items() if keys})


def _rename(key: str) -> str:
    for pattern, name in _RULES:
        key = re.sub(pattern, name, key)
    return key


register_layout(
    Layout(
        "Detic or CenterNet2 (Detectron2's names)",
        recognise,
        lambda model: isinstance(model, ScaleDet),
        from_detic,
    )
)
