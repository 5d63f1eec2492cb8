"""How mmdetection 2 and 3 name the DETR family and its backbones."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

MMDET: tuple[Rule, ...] = (
    (r"\.(self|cross)_attn\.attn\.", r".\1_attn."),
    (r"\.ffn\.layers\.0\.0\.", ".ffn.linear1."),
    (r"\.ffn\.layers\.0\.1\.", ".ffn.activation."),
    (r"\.ffn\.layers\.1\.", ".ffn.linear2."),
    (r"\.norms\.(\d)", lambda match: f".norm{int(match[1]) + 1}"),
    (r"^decoder\.post_norm\.", "decoder.norm."),
    (r"^bbox_head\.fc_cls\.", "class_heads.0."),
    (r"^bbox_head\.reg_ffn\.layers\.0\.0\.", "box_heads.0.layers.0."),
    (r"^bbox_head\.reg_ffn\.layers\.1\.", "box_heads.0.layers.1."),
    (r"^bbox_head\.fc_reg\.layers\.", "box_heads.0.layers."),
    (r"^bbox_head\.fc_reg\.", "box_heads.0.layers.2."),
    (r"^bbox_head\.cls_branches\.", "class_heads."),
    (r"^bbox_head\.reg_branches\.(\d+)\.(\d)\.", lambda match: f"box_heads.{match[1]}.layers.{int(match[2]) // 2}."),
    (r"^memory_trans_fc\.", "queries.token_proj."),
    (r"^memory_trans_norm\.", "queries.token_norm."),
    (r"^pos_trans_fc\.", "queries.position_proj."),
    (r"^pos_trans_norm\.", "queries.position_norm."),
    (r"^reference_points_fc\.", "queries.reference."),
    (r"^dn_query_generator\.label_embedding\.", "denoising.label_embedding."),
)
MMDET2: tuple[Rule, ...] = (  # 2.x kept the transformer inside the head
    (r"^bbox_head\.(transformer|input_proj|query_embedding)\.", r"\1."),
    (r"^transformer\.decoder\.post_norm\.", "decoder.norm."),
    *(rule for rule in MMDET if rule[0].startswith(r"^bbox_head\.")),
)
_SWIN: tuple[Rule, ...] = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.(\d+)\.", r"layers.\1."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
_UNFOLDED = re.compile(r"\.downsample\.(norm|reduction)\.")


def is_mmdet(keys: set[str]) -> bool:
    """Whether these are the keys of a DETR of mmdetection 3."""
    return "decoder.layers.0.norms.0.weight" in keys and any(key.startswith("bbox_head.") for key in keys)


def name_queries(state: dict[str, Tensor]) -> None:
    """Rename in place: one name stands for anchors, content or position, by the width of what it holds."""
    queries = state.pop("query_embedding.weight", None)
    if queries is None:
        return
    kind = "content" if "queries.token_proj.weight" in state else "position"
    state[f"queries.{'anchors' if queries.shape[1] == 4 else kind}.weight"] = queries


def swin_to_microsoft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Swin transformer of mmdetection (keys below the backbone) in the names and the order of Microsoft's.

    There a window of four patches is unfolded channel by channel, here patch by patch, columns first.
    """
    found = {}
    for key, value in state.items():
        if _UNFOLDED.search(key):
            four = value.unflatten(-1, (-1, 4)).transpose(-1, -2)  # [..., patch, channel]
            value = four[..., [0, 2, 1, 3], :].flatten(-2)
        for pattern, replacement in _SWIN:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return found


def swin_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Swin transformer of Microsoft's names (keys below the backbone) below `bottom_up` of this package.

    timm puts the merging of patches before the stage that reads it; the norms of the returned maps stand by themselves.
    """
    norms = sorted({int(match[1]) for key in state if (match := re.match(r"norm(\d)\.", key))})
    place = {f"norm{number}": f"bottom_up.out_norms.{index}" for index, number in enumerate(norms)}
    found = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head in place:
            found[f"{place[head]}.{rest}"] = value
            continue
        key = re.sub(r"^layers\.(\d+)\.blocks\.", r"layers_\1.blocks.", key)
        key = re.sub(r"^layers\.(\d+)\.(?=downsample)", lambda match: f"layers_{int(match[1]) + 1}.", key)
        found[f"bottom_up.body.{key}"] = value
    return found
