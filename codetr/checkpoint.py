"""Released Co-DETR checkpoints (mmdetection's naming) as state dicts of this package.

They are recognised wherever weights are loaded. The model must list its heads in the released order, Faster or Mask
R-CNN first, then ATSS; one without heads takes the base alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polydet.detr.checkpoint_maps import (
    CHANNEL_MAPPER,
    MMCV_LAYERS,
    Rule,
    StateDict,
    apply_rules,
    place_encoder_heads,
    place_swin,
    share_equal_heads,
)
from polydet.engine.layouts import Converted, Layout, register_layout
from polydet.engine.layouts.detr import add_zero_biases, rows_of
from polydet.engine.layouts.mmdet import rcnn_rules, sizes_first

from .meta_arch import CoDETR

_HEADS = "collaborators.heads."
_RPN = f"{_HEADS}0.rpn.rpn_head"
_RULES: tuple[Rule, ...] = (
    (r"^backbone\.(?=conv1|bn1|layer\d)", "backbone.bottom_up.body."),
    (r"^backbone\.(?=patch_embed|pos_embed|blocks)", "backbone.bottom_up.body."),  # EVA-02
    (r"^backbone\.out_norm\.", "backbone.bottom_up.out_norm."),
    (r"(\.body\.blocks\.\d+\.attn\.[qv])_bias$", r"\1_proj.bias"),
    (r"(\.body\.blocks\.\d+\.mlp)\.w1\.", r"\1.fc1_g."),
    (r"(\.body\.blocks\.\d+\.mlp)\.w2\.", r"\1.fc1_x."),
    (r"(\.body\.blocks\.\d+\.mlp)\.w3\.", r"\1.fc2."),
    (r"(\.body\.blocks\.\d+\.mlp)\.ffn_ln\.", r"\1.norm."),
    (r"^neck\.p(\d)\.", lambda match: f"backbone.scales.{int(match[1]) - 2}."),
    *CHANNEL_MAPPER,
    (r"^query_head\.transformer\.(?=encoder|decoder)", ""),
    *MMCV_LAYERS,
    (r"^decoder\.ref_point_head\.0\.", "decoder.query_position.position_head.layers.0."),
    (r"^decoder\.ref_point_head\.2\.", "decoder.query_position.position_head.layers.1."),
    (r"^query_head\.transformer\.level_embeds$", "level_embed"),
    (r"^query_head\.transformer\.enc_output\.", "queries.token_proj."),
    (r"^query_head\.transformer\.enc_output_norm\.", "queries.token_norm."),
    (r"^query_head\.transformer\.pos_trans\.", "queries.position_proj."),
    (r"^query_head\.transformer\.pos_trans_norm\.", "queries.position_norm."),
    (r"^query_head\.transformer\.reference_points\.", "queries.reference."),
    (r"^query_head\.(?:transformer\.query_embed|query_embedding)\.weight$", "queries.content.weight"),
    (r"^query_head\.label_embedding\.", "denoising.label_embedding."),
    (r"^query_head\.downsample\.", "collaborators.adapter.down.0."),
    (r"^query_head\.transformer\.aux_pos_trans\.", "collaborators.queries.box_proj."),
    (r"^query_head\.transformer\.aux_pos_trans_norm\.", "collaborators.queries.box_norm."),
    (r"^query_head\.transformer\.pos_feats_trans\.", "collaborators.queries.feature_proj."),
    (r"^query_head\.transformer\.pos_feats_norm\.", "collaborators.queries.feature_norm."),
    (r"^query_head\.transformer\.head_pos_embed\.", "collaborators.queries.head_embedding."),
    (r"^query_head\.cls_branches\.(\d+)\.", r"class_heads.\1."),
    (r"^query_head\.reg_branches\.(\d+)\.0\.", r"box_heads.\1.layers.0."),
    (r"^query_head\.reg_branches\.(\d+)\.2\.", r"box_heads.\1.layers.1."),
    (r"^query_head\.reg_branches\.(\d+)\.4\.", r"box_heads.\1.layers.2."),
    *rcnn_rules(r"roi_head\.0", _RPN, _HEADS + "0.roi_heads"),
    (r"^bbox_head\.0\.cls_convs\.(\d+)\.conv\.", _HEADS + r"1.head.class_tower.\1."),
    (r"^bbox_head\.0\.reg_convs\.(\d+)\.conv\.", _HEADS + r"1.head.box_tower.\1."),
    (r"^bbox_head\.0\.cls_convs\.(\d+)\.gn\.", _HEADS + r"1.head.class_tower.\1.norm."),
    (r"^bbox_head\.0\.reg_convs\.(\d+)\.gn\.", _HEADS + r"1.head.box_tower.\1.norm."),
    (r"^bbox_head\.0\.atss_cls\.", _HEADS + "1.head.class_predictor."),
    (r"^bbox_head\.0\.atss_reg\.", _HEADS + "1.head.box_predictor."),
    (r"^bbox_head\.0\.atss_centerness\.", _HEADS + "1.head.quality_predictor."),
)
_DERIVED = re.compile(
    r"(relative_position_index|attn_mask|num_batches_tracked|freqs_(cos|sin))$"
)  # made by the modules themselves


def from_mmdet(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename a released Co-DETR checkpoint to `CoDETR`'s modules.

    Anchors of the RPN are reordered: there a location's nine anchors run over ratios first, here over sizes.
    Copies that the training kept for an exponential average (`ema_...`) are left out. Keys that no rule knows keep
    their name, so that the load ledger lists them.

    Raises:
        ValueError: not such a checkpoint.
    """
    if not any(key.startswith("query_head.") for key in state_dict):
        raise ValueError(
            "not a Co-DETR checkpoint of mmdetection's naming: no key starts with 'query_head.', the first are "
            f"{sorted(state_dict)[:3]}"
        )
    renamed = {
        _rename(key): value
        for key, value in place_swin(dict(state_dict)).items()
        if not key.startswith("ema_") and not _DERIVED.search(key)
    }
    _stack_level_scales(renamed)
    _reorder_rpn(renamed)
    place_encoder_heads(renamed)
    share_equal_heads(renamed)
    _split_learned_queries(renamed)
    return renamed


def _rename(key: str) -> str:
    if key.startswith("backbone.bottom_up."):
        return key
    return apply_rules(_RULES, key)


def _stack_level_scales(state: StateDict) -> None:
    scales = sorted((int(m[1]), k) for k in state if (m := re.match(r"bbox_head\.0\.scales\.(\d+)\.scale$", k)))
    if scales:
        state[_HEADS + "1.head.level_scale"] = torch.stack([state.pop(key).reshape(()) for _, key in scales])


def _reorder_rpn(state: StateDict) -> None:
    for key in [k for k in state if k.startswith((f"{_RPN}.objectness_logits.", f"{_RPN}.anchor_deltas."))]:
        state[key] = sizes_first(state[key])


def _split_learned_queries(state: StateDict) -> None:
    """Plain Deformable-DETR keeps position and content side by side."""
    content = state.get("queries.content.weight")
    width = state["decoder.layers.0.ffn.linear1.weight"].shape[1]
    if content is not None and content.shape[1] == 2 * width:
        state["queries.position.weight"], state["queries.content.weight"] = content.split(width, dim=1)


def _convert(state: StateDict, model: nn.Module) -> Converted:
    assert isinstance(model, CoDETR)
    found = from_mmdet(state)
    add_zero_biases(found, model)
    left_out: dict[str, list[str]] = {}
    if model.collaborators is None:
        left_out["auxiliary heads, for training only"] = [k for k in found if k.startswith("collaborators.")]
    dropped = {key for keys in left_out.values() for key in keys}
    found = {key: value for key, value in found.items() if key not in dropped}
    return Converted(found, left_out, rows_of(found, model))


register_layout(
    Layout(
        "Co-DETR's release",
        lambda state: any(key.startswith("query_head.transformer.") for key in state),
        lambda model: isinstance(model, CoDETR),
        _convert,
    )
)
