"""mmdetection's Faster R-CNN, Mask R-CNN and RetinaNet (2.x and 3.x name them alike) in Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn

from polydet.backbones import TimmBackbone
from polydet.backbones.necks import ExtraLevels
from polydet.detr.checkpoint_maps import Rule, apply_rules, place_swin
from polydet.engine.layouts.classes import row_names
from polydet.engine.layouts.registry import Converted, Layout, StateDict, register_layout

_DERIVED = re.compile(r"(relative_position_index|attn_mask|num_batches_tracked)$")


def rcnn_rules(roi: str, rpn: str, heads: str) -> tuple[Rule, ...]:
    """Rules for an RPN and for box and mask heads.

    Args:
        roi: their name of the heads, a regular expression.
        rpn: ours of the RPN's head.
        heads: ours of the heads.
    """

    def counted(name: str) -> Rule:
        """Numbers start at 1 here and at 0 there."""
        theirs, ours = name.split()
        return rf"^{roi}\.{theirs}\.(\d+)\.", lambda match: f"{heads}.{ours}{int(match[1]) + 1}."

    return (
        (r"^rpn_head\.rpn_conv\.", f"{rpn}.conv."),
        (r"^rpn_head\.rpn_cls\.", f"{rpn}.objectness_logits."),
        (r"^rpn_head\.rpn_reg\.", f"{rpn}.anchor_deltas."),
        (rf"^({roi}\.(?:bbox|mask)_head\.(?:shared_)?convs\.\d+)\.conv\.", r"\1."),
        (rf"^({roi}\.(?:bbox|mask)_head\.(?:shared_)?convs\.\d+)\.(?:gn|bn)\.", r"\1.norm."),
        counted(r"bbox_head\.shared_convs box_head.conv"),
        counted(r"bbox_head\.shared_fcs box_head.fc"),
        counted(r"mask_head\.convs mask_head.mask_fcn"),
        (rf"^{roi}\.bbox_head\.fc_cls\.", f"{heads}.box_predictor.cls_score."),
        (rf"^{roi}\.bbox_head\.fc_reg\.", f"{heads}.box_predictor.bbox_pred."),
        (rf"^{roi}\.mask_head\.upsample\.", f"{heads}.mask_head.deconv."),
        (rf"^{roi}\.mask_head\.conv_logits\.", f"{heads}.mask_head.predictor."),
    )


def sizes_first(value: Tensor, ratios: int = 3, sizes: int = 3) -> Tensor:
    """Rows of a location's anchors, ratio by ratio there, size by size here; ``[ratios * sizes * n, ...]``."""
    return value.unflatten(0, (ratios, sizes, -1)).transpose(0, 1).flatten(0, 2)


def to_detectron2(state: Mapping[str, Tensor]) -> StateDict:
    """A detector under Detectron2's names, its backbone under timm's; what no rule knows keeps its name."""
    state = place_swin({k: v for k, v in state.items() if not _DERIVED.search(k)})
    laterals = {m[1] for k in state if (m := re.match(r"neck\.lateral_convs\.(\d+)\.", k))}
    normed = any(re.match(r"bbox_head\.cls_convs\.0\.(gn|bn)\.", k) for k in state)
    rules = (
        (r"^backbone\.(?=conv1|bn1|layer\d)", "backbone.bottom_up.body."),
        *_pyramid_rules(len(laterals)),
        *rcnn_rules("roi_head", "proposal_generator.rpn_head", "roi_heads"),
        *_dense_rules(3 if normed else 2),
    )
    found = {k if k.startswith("backbone.bottom_up.") else apply_rules(rules, k): v for k, v in state.items()}
    for key in [k for k in found if re.match(r"head\.\w+_subnet\.\d+\.weight$", k) and found[k].dim() == 4]:
        bias = key.replace("weight", "bias")
        if bias not in found:  # mmdetection has none before a norm, which is one of zero
            found[bias] = torch.zeros(len(found[key]), dtype=found[key].dtype)
    return found


def _pyramid_rules(laterals: int) -> tuple[Rule, ...]:
    first = 6 - laterals  # res2 for four maps, res3 for three

    def placed(match: re.Match[str]) -> str:
        number = int(match[2])
        if match[1] == "fpn_convs" and number >= laterals:
            return f"backbone.top_block.p{6 + number - laterals}."
        return f"backbone.{match[1].removesuffix('_convs').replace('fpn', 'output')}_{first + number}."

    return (
        (r"^neck\.(lateral_convs|fpn_convs)\.(\d+)\.", placed),
        (r"^(backbone\.top_block\.p\d)\.conv\.", r"\1."),
        (r"^(backbone\.top_block\.p\d)\.(?:bn|gn)\.", r"\1.norm."),
        (r"^backbone\.(lateral|output)_(\d)\.conv\.", r"backbone.fpn_\1\2."),
        (r"^backbone\.(lateral|output)_(\d)\.(?:bn|gn)\.", r"backbone.fpn_\1\2.norm."),
    )


def _dense_rules(step: int) -> tuple[Rule, ...]:
    """Towers are convolution, norm (if any), ReLU."""

    def placed(match: re.Match[str]) -> str:
        tower = {"cls": "cls", "reg": "bbox"}[match[1]]
        return f"head.{tower}_subnet.{step * int(match[2]) + (match[3] != 'conv')}."

    return (
        (r"^bbox_head\.(cls|reg)_convs\.(\d)\.(conv|gn|bn)\.", placed),
        (r"^bbox_head\.(?:retina|conv)_reg\.", "head.bbox_pred."),
        (r"^bbox_head\.(?:retina|conv)_cls\.", "head.cls_score."),
        (r"^bbox_head\.conv_centerness\.", "head.ctrness."),
    )


def leave_pyramid_biases(state: StateDict, model: nn.Module) -> dict[str, list[str]]:
    """Take out of ``state`` biases of a pyramid without norms where the model's has norms: ``{what: keys}``."""
    own = model.state_dict()
    surplus = [k for k in state if re.match(r"backbone\.(fpn_|top_block\.)\w+\.bias$", k) and k not in own]
    if not surplus or any(re.match(r"backbone\.fpn_.*\.norm\.", k) for k in state):
        return {}
    for key in surplus:
        del state[key]
    return {"biases of the pyramid, which has norms here": surplus}


def _recognise(state: Mapping[str, Tensor]) -> bool:
    foreign = any(key.startswith(("query_head.", "online_backbone.")) for key in state)
    heads = any(key.startswith(("rpn_head.rpn_conv.", "bbox_head.cls_convs.")) for key in state)
    return heads and not foreign and "neck.lateral_convs.0.conv.weight" in state


def fits(model: nn.Module) -> bool:
    """A detector of Detectron2 with a pyramid on one timm backbone."""
    bodies = sum(isinstance(module, TimmBackbone) for module in model.modules())
    pyramid = isinstance(getattr(model, "backbone", None), FPN)
    return isinstance(model, GeneralizedRCNN | DenseDetector) and pyramid and bodies == 1


def _convert(state: StateDict, model: nn.Module) -> Converted:
    if any(key.startswith("roi_head.bbox_head.0.") for key in state):
        raise ValueError("it is a cascade (Cascade R-CNN, HTC, CBNetV2): give a map as train.init.key_map")
    if any(".conv_centerness." in key or ".atss_cls." in key for key in state):
        raise ValueError(
            "its head's distances are exponentials and its centre-ness reads the class tower (FCOS of mmdetection), "
            "here they are linear and it reads the box tower: only what AlignDet pre-trained can be taken over"
        )
    found = to_detectron2(state)
    if "head.bbox_pred.weight" in found:
        _check_retinanet(model)
        for key in [k for k in found if k.startswith(("head.bbox_pred.", "head.cls_score."))]:
            found[key] = sizes_first(found[key])
    left_out = leave_pyramid_biases(found, model)
    return Converted(found, left_out, _rows(found))


def _check_retinanet(model: nn.Module) -> None:
    top = model.backbone.top_block  # type: ignore[union-attr]
    if isinstance(model, RetinaNet) and not (isinstance(top, ExtraLevels) and not top.relu):
        raise ValueError(
            "its P7 reads P6 without a ReLU: use a config whose model.backbone.top_block is ExtraLevels(relu=False), "
            "as configs/aligndet/table2_retinanet_r50_90k_base.py"
        )


def _rows(state: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    two_stage, dense = state.get("roi_heads.box_predictor.cls_score.bias"), state.get("head.cls_score.bias")
    count = len(two_stage) - 1 if two_stage is not None else len(dense) // 9 if dense is not None else 0
    names = row_names(count)
    return None if names is None else tuple(names)


register_layout(Layout("a detector in mmdetection's names", _recognise, fits, _convert))
