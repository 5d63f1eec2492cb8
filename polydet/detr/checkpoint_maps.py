"""State dicts of published DETR checkpoints, renamed to this package's modules.

Pure functions: tensors in, tensors out, nothing is loaded or built. Five naming schemes are known:

- *official*: the authors' repositories of DETR, Deformable-DETR, Conditional DETR, DAB-DETR and DINO;
- *detrex*: its ports on Detectron2;
- *transformers*: HuggingFace's ports;
- *mmdet* and *mmdet2*: mmdetection 3 and 2 (`mmdet_names`).

A scheme is a list of substitutions that are applied to each key in turn. Keys that no substitution touches keep
their name, so that the load ledger lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .mmdet_names import MMDET, MMDET2, is_mmdet, name_queries, swin_to_microsoft, swin_to_timm

StateDict = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
Scheme = Literal["official", "detrex", "transformers", "mmdet", "mmdet2"]

_WRAPPERS = ("model", "state_dict")  # keys under which training scripts store the state dict


def _shift(by: int) -> Callable[[re.Match[str]], str]:
    """Replacement that adds `by` to the number in the last group and keeps the first."""
    return lambda match: f"{match[1]}{int(match[2]) + by}"


_RESNET: tuple[Rule, ...] = (
    (r"^backbone\.(?=conv1|bn1|layer\d)", "backbone.bottom_up.body."),
    (r"^backbone\.0\.body\.", "backbone.bottom_up.body."),
    (r"^model\.backbone\.(conv_encoder\.)?(model\.)?(_backbone\.)?", "backbone.bottom_up.body."),
    (r"^backbone\.(?=stem|res\d)", "backbone.bottom_up.body."),
    (r"\.body\.stem\.conv1\.norm\.", ".body.bn1."),
    (r"\.body\.stem\.conv1\.", ".body.conv1."),
    (r"(\.body\.)res(\d)", lambda m: f"{m[1]}layer{int(m[2]) - 1}"),
    (r"(\.body\.layer.*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"(\.body\.layer.*)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"(\.body\.layer.*)\.shortcut\.", r"\1.downsample.0."),
)

# parts that checkpoints of mmdetection and of its descendants share
CHANNEL_MAPPER: tuple[Rule, ...] = (
    (r"^neck\.convs\.(\d+)\.conv\.", r"backbone.lateral.\1.0."),
    (r"^neck\.convs\.(\d+)\.(?:gn|norm)\.", r"backbone.lateral.\1.1."),
    (r"^neck\.extra_convs\.(\d+)\.conv\.", r"backbone.extra.\1.0."),
    (r"^neck\.extra_convs\.(\d+)\.(?:gn|norm)\.", r"backbone.extra.\1.1."),
)
MMCV_LAYERS: tuple[Rule, ...] = (
    (r"\.attentions\.(\d)\.attn\.", r".attentions.\1."),
    (r"\.attentions\.0\.", ".self_attn."),
    (r"\.attentions\.1\.", ".cross_attn."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".ffn.linear1."),
    (r"\.ffns\.0\.layers\.0\.1\.", ".ffn.activation."),
    (r"\.ffns\.0\.layers\.1\.", ".ffn.linear2."),
    (r"(\.norm)s\.(\d)", _shift(1)),
)

# what follows the scheme's own rules: heads, queries and everything outside the layers
_OUTSIDE: tuple[Rule, ...] = (
    (r"^(transformer|model)\.(?=encoder|decoder)", ""),
    (r"^(transformer|model)\.", ""),
    (r"^level_embeds?$", "level_embed"),
    (r"^input_proj(ection)?\.(weight|bias)$", r"backbone.lateral.0.0.\2"),
    *CHANNEL_MAPPER,
    (r"^decoder\.(post_norm_layer|layernorm)\.", "decoder.norm."),
    (r"^encoder\.query_scale\.", "encoder.position_scale."),
    (r"^decoder\.query_scale\.", "decoder.query_position.query_scale."),
    (r"^decoder\.ref_anchor_head\.", "decoder.query_position.size_head."),
    (r"^(class_embed|class_labels_classifier)\.(?=weight|bias)", "class_heads.0."),
    (r"^(bbox_embed|bbox_predictor)\.layers\.", "box_heads.0.layers."),
    (r"^class_embed\.", "class_heads."),
    (r"^bbox_embed\.", "box_heads."),
    (r"^enc_out_class_embed\.", "queries.class_head."),
    (r"^enc_out_bbox_embed\.", "queries.box_head."),
    (r"^enc_output\.", "queries.token_proj."),
    (r"^enc_output_norm\.", "queries.token_norm."),
    (r"^pos_trans\.", "queries.position_proj."),
    (r"^pos_trans_norm\.", "queries.position_norm."),
    (r"^reference_points\.", "queries.reference."),
    (r"^(query_embed|query_embedding|query_position_embeddings)\.weight$", "queries.position.weight"),
    (r"^(refpoint_embed|anchor_box_embed|query_refpoint_embeddings)\.weight$", "queries.anchors.weight"),
    (r"^tgt_embed\.weight$", "queries.content.weight"),
    (r"^label_enc\.weight$", "denoising.label_embedding.weight"),
)

_WORDS = {"q": "query", "k": "key", "query": "query", "key": "key", "content": "content", "pos": "position"}


def _conditional_name(match: re.Match[str]) -> str:
    """`q_content_proj`, `query_pos_proj`, ... to `query_content`, `query_position`, ..."""
    return f"{_WORDS[match[1]]}_{_WORDS[match[2]]}."


_CONDITIONAL: tuple[Rule, ...] = (
    (r"(?:q|query)_?pos_sine_proj\.", "query_spatial."),
    (r"\b(q|k|query|key)_?(content|pos)_proj\.", _conditional_name),
)

_OFFICIAL: tuple[Rule, ...] = (
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"\.sa_v_proj\.", ".self_attn.value."),
    (r"\.ca_v_proj\.", ".cross_attn.value."),
    (r"\.sa_(?=[qk])", ".self_attn."),
    (r"\.ca_(?=[qk])", ".cross_attn."),
    *_CONDITIONAL,
    (r"(layers\.\d+)\.(linear[12]|activation)\.", r"\1.ffn.\2."),
)

_DETREX: tuple[Rule, ...] = (*MMCV_LAYERS, *_CONDITIONAL)

_TRANSFORMERS: tuple[Rule, ...] = (
    (r"\.(self_attn\.)?self_attn_layer_norm\.", ".norm1."),
    (r"\.(encoder_attn|cross_attn\.cross_attn)_layer_norm\.", ".norm2."),
    (r"(^model\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.(mlp\.)?final_layer_norm\.", ".norm3."),
    (r"\.(mlp\.)?fc([12])\.", r".ffn.linear\2."),
    (r"\.(mlp\.)?activation_fn\.", ".ffn.activation."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.(self|cross)_attn\.\1_attn_value_proj\.", r".\1_attn.value."),
    (r"\.(self|cross)_attn\.\1_attn\.output_proj\.", r".\1_attn.out."),
    (r"\.(self|cross)_attn\.\1_attn_", r".\1_attn."),
    *_CONDITIONAL,
    (r"_attn\.o_proj\.", "_attn.out_proj."),
)

_SCHEMES: dict[Scheme, tuple[Rule, ...]] = {
    "official": _OFFICIAL,
    "detrex": _DETREX,
    "transformers": _TRANSFORMERS,
    "mmdet": (*MMDET, *_CONDITIONAL),
    "mmdet2": (*MMDET2, *MMCV_LAYERS),
}
_DERIVED = re.compile(r"(relative_position_index|attn_mask)$")  # made by the modules themselves


def scheme_of(keys: Iterable[str]) -> Scheme | None:
    """Which scheme a state dict follows; None for one that is no foreign DETR (this package's own, for example)."""
    keys = set(keys)
    if is_mmdet(keys):
        return "mmdet"
    if any(key.startswith("bbox_head.transformer.decoder.") for key in keys):
        return "mmdet2"
    if any(".attentions.0." in key for key in keys):
        return "detrex"
    if any(key.startswith("model.decoder.layers.") for key in keys):
        return "transformers"
    if any(key.startswith("transformer.decoder.layers.") for key in keys):
        return "official"
    return None


def convert(
    state_dict: Mapping[str, Tensor], class_rows: Sequence[int] | None = None, share_heads: bool = True
) -> StateDict:
    """Rename a published DETR checkpoint to this package's modules.

    Args:
        state_dict: of any of the schemes; a training script's dict around it (`model`, `state_dict`) is opened.
        class_rows: for each of our classes, its row in the checkpoint's class heads. The authors' COCO models have
            one row per COCO category id (91, with gaps). A background row (DETR) stays last. None: rows as they are.
        share_heads: heads that the checkpoint repeats for every layer with equal values become one.

    Returns:
        a new dict.

    Raises:
        ValueError: a state dict of no known scheme.
    """
    state = _unwrap(state_dict)
    scheme = scheme_of(state)
    if scheme is None:
        raise ValueError(
            "not a DETR checkpoint of the official, detrex, transformers or mmdetection naming: no decoder layers "
            f"under 'transformer.' or 'model.' among keys such as {sorted(state)[:3]}"
        )
    state = place_swin({k: v for k, v in state.items() if not _DERIVED.search(k)})
    rules = (*_RESNET, *_SCHEMES[scheme], *_OUTSIDE)
    renamed: StateDict = {}
    for key, value in state.items():
        renamed[key if key.startswith("backbone.bottom_up.") else apply_rules(rules, key)] = value
    renamed = {k: v for k, v in renamed.items() if not re.match(r"decoder\.(class_embed|bbox_embed)\.", k)}
    if scheme == "mmdet" and "query_embedding.weight" in state:
        renamed["query_embedding.weight"] = renamed.pop("queries.position.weight")
        name_queries(renamed)
    _name_by_kind(renamed, scheme)
    _merge_projections(renamed)
    _place_input_projections(renamed)
    place_encoder_heads(renamed)
    if share_heads:
        share_equal_heads(renamed)
    if class_rows is not None:
        _take_class_rows(renamed, class_rows)
    return renamed


def place_swin(state: StateDict) -> StateDict:
    """A Swin backbone, whoever named it, as timm's: parts below `backbone` that no ResNet has."""
    for prefix in ("backbone.0.", "backbone."):
        swin = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not any(k.startswith(("layers.0.blocks.", "stages.0.blocks.")) for k in swin):
            continue
        if "patch_embed.projection.weight" in swin:
            swin = swin_to_microsoft(swin)
        rest = {k: v for k, v in state.items() if not k.startswith(prefix)}
        return {**rest, **{f"backbone.{k}": v for k, v in swin_to_timm(swin).items()}}
    return state


def _unwrap(state_dict: Mapping[str, Tensor]) -> StateDict:
    state: Mapping = state_dict
    for wrapper in _WRAPPERS:
        if wrapper in state and isinstance(state[wrapper], Mapping):
            state = state[wrapper]
    return {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def apply_rules(rules: Sequence[Rule], key: str) -> str:
    """A key after the substitutions, each applied to what the one before it left."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _rename(state: StateDict, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> None:
    for key in [k for k in state if re.search(pattern, k)]:
        state[re.sub(pattern, replacement, key)] = state.pop(key)


def _name_by_kind(state: StateDict, scheme: Scheme) -> None:
    """Names that mean different things in different members."""
    deformable = "decoder.layers.0.cross_attn.sampling_offsets.weight" in state
    conditional = "decoder.layers.0.self_attn.query_content.weight" in state
    anchors = "queries.anchors.weight" in state or "queries.token_proj.weight" in state
    if deformable and scheme == "official":  # there, norm1 follows cross-attention
        _rename(state, r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.norm_2.")
        _rename(state, r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.norm1.")
        _rename(state, r"^(decoder\.layers\.\d+)\.norm_2\.", r"\1.norm2.")
    if conditional:
        _rename(state, r"^(decoder\.layers\.\d+\.\w+_attn)\.(out_proj|o_proj)\.", r"\1.out.")
        _rename(state, r"^(decoder\.layers\.\d+\.\w+_attn)\.(v_proj|value_proj)\.", r"\1.value.")
    head = "decoder.query_position.position_head." if anchors else "queries.reference."
    _rename(state, r"^decoder\.ref_point_head\.", head)
    position = state.get("queries.position.weight")
    if deformable and position is not None:
        width = state["decoder.layers.0.norm1.weight"].shape[0]
        if position.shape[1] == 2 * width:  # position and content side by side
            state["queries.position.weight"], state["queries.content.weight"] = position.split(width, dim=1)


def _merge_projections(state: StateDict) -> None:
    """Separate query, key and value projections to `nn.MultiheadAttention`'s one."""
    for kind in ("weight", "bias"):
        suffix = f".q_proj.{kind}"
        for key in [k for k in state if k.endswith(suffix)]:
            stem = key.removesuffix(suffix)
            parts = [state.pop(f"{stem}.{name}_proj.{kind}") for name in "qkv"]
            state[f"{stem}.in_proj_{kind}"] = torch.cat(parts)


def _place_input_projections(state: StateDict) -> None:
    """`input_proj.{level}`: 1x1 convs belong to backbone maps, 3x3 ones to further levels."""
    levels = sorted({int(m[1]) for k in state if (m := re.match(r"input_proj\.(\d+)\.", k))})
    kernels = {level: state[f"input_proj.{level}.0.weight"].shape[-1] for level in levels}
    lateral = sum(kernel == 1 for kernel in kernels.values())
    for level in levels:
        target = f"lateral.{level}" if kernels[level] == 1 else f"extra.{level - lateral}"
        _rename(state, rf"^input_proj\.{level}\.", f"backbone.{target}.")


def place_encoder_heads(state: StateDict) -> None:
    """Rename in place: the head after those of the decoder layers scores the encoder's proposals."""
    extra = 1 + max(int(m[1]) for k in state if (m := re.match(r"decoder\.layers\.(\d+)\.", k)))
    _rename(state, rf"^class_heads\.{extra}\.", "queries.class_head.")
    _rename(state, rf"^box_heads\.{extra}\.", "queries.box_head.")


def share_equal_heads(state: StateDict) -> None:
    """Keep in place one head of each kind where those of all decoder layers are equal."""
    for heads in ("class_heads", "box_heads"):
        first = {k: v for k, v in state.items() if k.startswith(f"{heads}.0.")}
        others = [k for k in state if k.startswith(f"{heads}.") and k not in first]
        if all(torch.equal(state[k], first[re.sub(r"\.\d+", ".0", k, count=1)]) for k in others):
            for key in others:
                del state[key]


def _take_class_rows(state: StateDict, class_rows: Sequence[int]) -> None:
    rows = torch.as_tensor(list(class_rows))
    heads = [k for k in state if re.match(r"(class_heads\.\d+|queries\.class_head)\.(weight|bias)$", k)]
    softmax = "queries.position.weight" in state and not any(
        k.startswith(("queries.reference.", "queries.content.")) for k in state
    )
    for key in heads:
        value = state[key]
        objectness = key.startswith("queries.") and "queries.position_proj.weight" in state  # in row 0, of any object
        kept = value[: len(rows)] if objectness else value[rows.to(value.device)]
        state[key] = torch.cat((kept, value[-1:])) if softmax else kept
    embedding = state.get("denoising.label_embedding.weight")
    if embedding is not None:
        state["denoising.label_embedding.weight"] = embedding[rows.to(embedding.device)]
