"""State dicts in the layouts of published checkpoints: this package's own one, renamed back by independent rules.

The names were read from the authors' repositories and detrex; each function lists what its scheme calls each part.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]

RESNET_DETECTRON2 = (
    (r"^conv1\.weight", "stem.conv1.weight"),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
    (r"^layer(\d)\.(\d)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"^layer(\d)\.(\d)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"^layer(\d)\.(\d)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
)


def _apply(rules: tuple, key: str) -> str:
    for pattern, replacement in rules:
        key, count = re.subn(pattern, replacement, key)
        if count:
            return key
    raise KeyError(key)


def _conditional(prefix_self: str, prefix_cross: str) -> tuple:
    """Conditional attention of the authors: sa_qcontent_proj, ca_kpos_proj, ..."""
    short = {"query": "q", "key": "k", "content": "content", "position": "pos"}

    def name(prefix: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"{m[1]}.{prefix}_{short[m[2]]}{short[m[3]]}_proj."

    return (
        (r"^(decoder\.layers\.\d+)\.cross_attn\.query_spatial\.", rf"\1.{prefix_cross}_qpos_sine_proj."),
        (r"^(decoder\.layers\.\d+)\.self_attn\.(query|key)_(content|position)\.", name(prefix_self)),
        (r"^(decoder\.layers\.\d+)\.cross_attn\.(query|key)_(content|position)\.", name(prefix_cross)),
        (r"^(decoder\.layers\.\d+)\.self_attn\.value\.", rf"\1.{prefix_self}_v_proj."),
        (r"^(decoder\.layers\.\d+)\.cross_attn\.value\.", rf"\1.{prefix_cross}_v_proj."),
        (r"^(decoder\.layers\.\d+)\.(self|cross)_attn\.out\.", r"\1.\2_attn.out_proj."),
    )


FFN = ((r"^(\w+\.layers\.\d+)\.ffn\.(linear\d|activation)\.", r"\1.\2."),)


def official_dense(ours: State) -> State:
    """DETR, Conditional DETR and DAB-DETR as their authors save them (under `model`)."""
    conditional = "decoder.layers.0.self_attn.query_content.weight" in ours
    rules = (
        *(_conditional("sa", "ca") if conditional else ()),
        *FFN,
        (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.multihead_attn."),
        (r"^decoder\.query_position\.query_scale\.", "decoder.query_scale."),
        (r"^decoder\.query_position\.position_head\.", "decoder.ref_point_head."),
        (r"^decoder\.query_position\.size_head\.", "decoder.ref_anchor_head."),
        (r"^encoder\.position_scale\.", "encoder.query_scale."),
        (r"^(encoder|decoder)\.", r"\1."),
    )
    result: State = {}
    for key, value in ours.items():
        if key.startswith(("encoder.", "decoder.")):
            result["transformer." + _apply(rules, key)] = value
        elif key.startswith("queries.reference."):
            result["transformer.decoder.ref_point_head." + key.removeprefix("queries.reference.")] = value
        else:
            result[_apply(OUTSIDE_OFFICIAL, key)] = value
    if "refpoint_embed.weight" in result:  # DAB-DETR's decoder holds its box head a second time
        for key in [k for k in result if k.startswith("bbox_embed.")]:
            result[f"transformer.decoder.{key}"] = result[key]
    return result


OUTSIDE_OFFICIAL = (
    (r"^backbone\.bottom_up\.body\.", "backbone.0.body."),
    (r"^backbone\.lateral\.0\.0\.", "input_proj."),
    (r"^queries\.position\.weight", "query_embed.weight"),
    (r"^queries\.anchors\.weight", "refpoint_embed.weight"),
    (r"^class_heads\.0\.", "class_embed."),
    (r"^box_heads\.0\.", "bbox_embed."),
)


def official_deformable(ours: State, layers: int) -> State:
    """Deformable-DETR as its authors save it: norm1 after cross-attention, shared heads once per layer, and all heads
    a second time in the decoder."""
    rules = (
        *FFN,
        (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.norm2."),
        (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.norm1."),
        (r"^decoder\.query_position\.position_head\.", "decoder.ref_point_head."),
        (r"^(encoder|decoder)\.", r"\1."),
    )
    outside = (
        (r"^backbone\.bottom_up\.body\.", "backbone.0.body."),
        (r"^backbone\.lateral\.(\d)\.", r"input_proj.\1."),
        (r"^backbone\.extra\.0\.", "input_proj.3."),
        (r"^level_embed$", "transformer.level_embed"),
        (r"^queries\.reference\.", "transformer.reference_points."),
        (r"^queries\.position\.weight", "position"),
        (r"^queries\.token_proj\.", "transformer.enc_output."),
        (r"^queries\.token_norm\.", "transformer.enc_output_norm."),
        (r"^queries\.position_proj\.", "transformer.pos_trans."),
        (r"^queries\.position_norm\.", "transformer.pos_trans_norm."),
        (r"^queries\.content\.weight", "transformer.tgt_embed.weight"),
        (r"^queries\.class_head\.", f"class_embed.{layers}."),
        (r"^queries\.box_head\.", f"bbox_embed.{layers}."),
        (r"^class_heads\.", "class_embed."),
        (r"^box_heads\.", "bbox_embed."),
        (r"^denoising\.label_embedding\.", "label_enc."),
    )
    result: State = {}
    for key, value in ours.items():
        inside = key.startswith(("encoder.", "decoder."))
        result["transformer." + _apply(rules, key) if inside else _apply(outside, key)] = value
    if "position" in result:  # position and content lie side by side
        parts = result.pop("position"), result.pop("transformer.tgt_embed.weight")
        result["query_embed.weight"] = torch.cat(parts, dim=1)
    for heads in ("class_embed", "bbox_embed"):
        if not any(k.startswith(f"{heads}.1.") for k in result):
            _repeat(result, heads, layers)
        for key in [k for k in result if k.startswith(f"{heads}.")]:
            result[f"transformer.decoder.{key}"] = result[key]
    return result


def _repeat(result: State, heads: str, layers: int) -> None:
    for key in [k for k in result if k.startswith(f"{heads}.0.")]:
        for layer in range(1, layers):
            result[key.replace(".0.", f".{layer}.", 1)] = result[key].clone()


def official_dino(ours: State, layers: int) -> State:
    """DINO as its authors save it: shared heads repeated, the encoder's heads under their own names."""
    result = official_deformable(ours, layers)
    for key in [k for k in result if f"class_embed.{layers}." in k or f"bbox_embed.{layers}." in k]:
        value = result.pop(key)
        if not key.startswith("transformer."):
            head, _, rest = key.split(".", 2)
            result[f"transformer.enc_out_{head}.{rest}"] = value
    return result


def detrex(ours: State, layers: int) -> State:
    """Any member as detrex saves it."""
    conditional = {"content": "content", "position": "pos"}
    rules = (
        (r"^(\w+\.layers\.\d+)\.ffn\.linear1\.", r"\1.ffns.0.layers.0.0."),
        (r"^(\w+\.layers\.\d+)\.ffn\.activation\.", r"\1.ffns.0.layers.0.1."),
        (r"^(\w+\.layers\.\d+)\.ffn\.linear2\.", r"\1.ffns.0.layers.1."),
        (r"^(\w+\.layers\.\d+)\.norm(\d)\.", lambda m: f"{m[1]}.norms.{int(m[2]) - 1}."),
        (r"^(\w+\.layers\.\d+)\.self_attn\.(in_proj|out_proj)", r"\1.attentions.0.attn.\2"),
        (r"^(decoder\.layers\.\d+)\.cross_attn\.(in_proj|out_proj)", r"\1.attentions.1.attn.\2"),
        (
            r"^(decoder\.layers\.\d+)\.self_attn\.(query|key)_(content|position)\.",
            lambda m: f"{m[1]}.attentions.0.{m[2]}_{conditional[m[3]]}_proj.",
        ),
        (
            r"^(decoder\.layers\.\d+)\.cross_attn\.(query|key)_(content|position)\.",
            lambda m: f"{m[1]}.attentions.1.{m[2]}_{conditional[m[3]]}_proj.",
        ),
        (r"^(decoder\.layers\.\d+)\.cross_attn\.query_spatial\.", r"\1.attentions.1.query_pos_sine_proj."),
        (r"^(decoder\.layers\.\d+)\.self_attn\.(value|out)\.", r"\1.attentions.0.\2_proj."),
        (r"^(decoder\.layers\.\d+)\.cross_attn\.(value|out)\.", r"\1.attentions.1.\2_proj."),
        (r"^(\w+\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
        (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.1."),
        (r"^decoder\.query_position\.query_scale\.", "decoder.query_scale."),
        (r"^decoder\.query_position\.position_head\.", "decoder.ref_point_head."),
        (r"^decoder\.query_position\.size_head\.", "decoder.ref_anchor_head."),
        (r"^encoder\.position_scale\.", "encoder.query_scale."),
        (r"^decoder\.norm\.", "decoder.norm." if "label_enc" in str(ours.keys()) else "decoder.post_norm_layer."),
    )
    dense = "level_embed" not in ours
    outside = (
        (r"^backbone\.lateral\.0\.0\.", "input_proj." if dense else "neck.convs.0.conv."),
        (r"^backbone\.lateral\.(\d)\.0\.", r"neck.convs.\1.conv."),
        (r"^backbone\.lateral\.(\d)\.1\.", r"neck.convs.\1.norm."),
        (r"^backbone\.extra\.(\d)\.0\.", r"neck.extra_convs.\1.conv."),
        (r"^backbone\.extra\.(\d)\.1\.", r"neck.extra_convs.\1.norm."),
        (r"^level_embed$", "transformer.level_embeds"),
        (r"^queries\.reference\.", "transformer.decoder.ref_point_head."),
        (r"^queries\.token_proj\.", "transformer.enc_output."),
        (r"^queries\.token_norm\.", "transformer.enc_output_norm."),
        (r"^queries\.position_proj\.", "transformer.pos_trans."),
        (r"^queries\.position_norm\.", "transformer.pos_trans_norm."),
        (r"^queries\.content\.weight", "transformer.tgt_embed.weight"),
        (r"^queries\.position\.weight", "query_embed.weight" if dense else "query_embedding.weight"),
        (r"^queries\.anchors\.weight", "anchor_box_embed.weight"),
        (r"^queries\.class_head\.", f"class_embed.{layers}."),
        (r"^queries\.box_head\.", f"bbox_embed.{layers}."),
        (r"^class_heads\.0\." if dense else r"^class_heads\.", "class_embed."),
        (r"^box_heads\.0\." if dense else r"^box_heads\.", "bbox_embed."),
        (r"^denoising\.label_embedding\.", "label_enc."),
    )  # fmt: skip
    result: State = {}
    for key, value in ours.items():
        if key.startswith("backbone.bottom_up.body."):
            result["backbone." + _apply(RESNET_DETECTRON2, key.removeprefix("backbone.bottom_up.body."))] = value
        elif key.startswith(("encoder.", "decoder.")):
            result["transformer." + _apply(rules, key)] = value
        else:
            result[_apply(outside, key)] = value
    if not dense:
        for key in [k for k in result if k.startswith(("class_embed.", "bbox_embed."))]:
            result[f"transformer.decoder.{key}"] = result[key]
    return result
