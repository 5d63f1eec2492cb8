"""Detic's and CenterNet2's files for ScaleDet, which has CenterNet2's parts with text classifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from detectron2.modeling import ResNet
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
    "a box regressor of one layer (of two here)": r"^roi_heads\.box_predictor\.\d\.bbox_pred\.(weight|bias)$",
}
_OTHERS = (  # what only another model of theirs has, and what that is
    (r"^proposal_generator\.rpn_head\.", "its first stage is an RPN with anchors (UniDet, Cascade R-CNN)"),
    (
        r"^proposal_generator\.centernet_head\.cls_tower\.",
        "it is CenterNet alone, of one stage",
    ),
    (r"^roi_heads\.box_head\.fc1\.", "it has one stage of boxes (CenterNet2-F), not a cascade of three"),
    (r"^backbone\.(cell|\w*bifpn)\.|\.bifpn\.|^backbone\.resample\.", "its pyramid is a BiFPN"),
    (r"^backbone\.bottom_up\.(base\.)?(level\d|base_layer)\.", "its backbone is a DLA"),
    (r"^backbone\.bottom_up\.res\d\.\d+\.convs\.", "its backbone is a Res2Net"),
    (r"\.conv2_offset\.|\.offset\.weight$", "it has deformable convolutions"),
)
_SCALE = r"proposal_generator\.centernet_head\.scales\.(\d+)\.scale$"


def recognise(state: Mapping[str, Tensor]) -> bool:
    """A detector of Detectron2 with CenterNet or an RPN before a cascade."""
    cascade = "roi_heads.box_head.0.fc1.weight" in state
    rpn = "proposal_generator.rpn_head.conv.weight" in state
    return (rpn and cascade) or any(key.startswith("proposal_generator.centernet_head.") for key in state)


def from_detic(state: StateDict, model: nn.Module) -> Converted:
    """Tensors by ScaleDet's names.

    Raises:
        ValueError: another model of theirs than CenterNet2 with a cascade, or Detectron2's own ResNet in the file (BGR
            images, strides in other convolutions than timm's) and another backbone in the model.
    """
    for pattern, what in _OTHERS:
        if any(re.search(pattern, key) for key in state):
            raise ValueError(f"{what}; ScaleDet has CenterNet2's parts as Detic and CenterNet2_R50_1x have them")
    own = any(isinstance(module, ResNet) for module in model.modules())
    if any(key.startswith("backbone.bottom_up.stem.") for key in state) != own:
        theirs, ours = ("Detectron2's own ResNet", "timm's")[:: -1 if own else 1]
        raise ValueError(
            f"its backbone is {theirs}, the model's is {ours}, which reads other channels and strides elsewhere: "
            "configs/released/scaledet_centernet2_r50.py has Detectron2's, every other ScaleDet timm's"
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
