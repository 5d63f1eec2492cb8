"""A random checkpoint in exactly a released layout fills every weight of its config, and all of it is used."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from released_names import HEADS, numbers_in, shapes_of, write

from polydet.engine import load_config, load_file
from polydet.engine.layouts import find_layout, row_names
from polydet.weight_files import CheckpointError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OWN_HEADS = {"share_heads": False}
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask", "freqs_cos", "freqs_sin")

FILES = {
    "detr_official_detr_r50": ("detr/detr_r50", {}),
    "detr_official_conditional_r50": ("detr/conditional_detr_r50", {}),
    "detr_official_dab_r50": ("detr/dab_detr_r50", {}),
    "detr_official_deformable_r50": ("detr/deformable_detr_r50", {}),
    "detr_official_deformable_r50_refine": ("detr/deformable_detr_r50_refine", {}),
    "detr_official_deformable_r50_two_stage": ("detr/deformable_detr_r50_two_stage", {}),
    "detr_official_dab_deformable_r50": ("detr/dab_deformable_detr_r50", {}),
    "detr_official_dn_dab_deformable_r50": ("detr/dn_dab_deformable_detr_r50", {}),
    "detr_official_dino_4scale_r50": ("detr/dino_4scale_r50", {}),
    "detr_official_dino_5scale_r50": ("detr/dino_5scale_r50", {}),
    "detr_official_dino_4scale_swin": ("detr/dino_4scale_swin_l", {}),
    "detr_hf_detr_r50": ("detr/detr_r50", {}),
    "detr_hf_conditional_r50": ("detr/conditional_detr_r50", {}),
    "detr_hf_dab_r50": ("detr/dab_detr_r50", {}),
    "detr_hf_deformable_r50": ("detr/deformable_detr_r50", {}),
    "detr_hf_deformable_r50_two_stage": ("detr/deformable_detr_r50_two_stage", {}),
    "detr_mmdet_detr_r50": ("detr/detr_r50", {}),
    "detr_mmdet_conditional_r50": ("detr/conditional_detr_r50", {}),
    "detr_mmdet_dab_r50": ("detr/dab_detr_r50", {}),
    "detr_mmdet_deformable_r50": ("detr/deformable_detr_r50", {}),
    "detr_mmdet_deformable_r50_two_stage": ("detr/deformable_detr_r50_two_stage", {}),
    "detr_mmdet_dino_r50": ("detr/dino_4scale_r50", OWN_HEADS),
    "detr_mmdet_dino_swin_l": ("detr/dino_5scale_swin_l", OWN_HEADS),
    "detr_detrex_dab_deformable_r50": ("detr/dab_deformable_detr_r50", {}),
    "detr_detrex_dino_r50": ("detr/dino_4scale_r50", OWN_HEADS),
    "codetr_deformable_r50": ("codetr/table3_deformable_detr_pp_r50_12ep_k2", {}),
    "codetr_deformable_mask_r50": ("released/co_deformable_mask_r50", {}),
    "codetr_deformable_swin_t": ("released/co_deformable_swin_t", {}),
    "codetr_dino_r50": ("codetr/table4_co_dino_5scale_r50_12ep", {}),
    "codetr_dino_9encoder_r50": ("released/co_dino_9encoder_r50", {}),
    "codetr_dino_swin_l_lvis": ("released/co_dino_swin_l_o365_lvis", {"class_counts": None}),
    "codetr_dino_vit_l": ("codetr/table5_co_dino_vit_l_o365_coco_12ep", {}),
    "codetr_dino_vit_l_lvis": ("codetr/table6_co_dino_pp_vit_l_o365_lvis", {"class_counts": None}),
}


WHOLE = (
    "detr_official_detr_r50",
    "detr_official_dino_4scale_r50",
    "detr_hf_deformable_r50_two_stage",
    "detr_mmdet_dab_r50",
    "detr_detrex_dab_deformable_r50",
    "codetr_deformable_r50",
)


def changed(config: str, changes: dict) -> DictConfig:
    """The model of a config, after `changes`."""
    cfg = load_config(CONFIGS / f"{config}.py")
    for key, value in changes.items():
        OmegaConf.update(cfg.model, key, value)
    return cfg.model


def empty_model(config: str, changes: dict) -> torch.nn.Module:
    """The config's model, all NaN."""
    with torch.device("meta"):
        model = instantiate(changed(config, changes))
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else 0)
    return model


def shared_heads(name: str) -> bool:
    """Whether the heads of all decoder layers are one module there."""
    config, changes = FILES[name]
    family = name.startswith(("detr_official", "detr_hf", "detr_mmdet"))
    return family and not changes and not any(part in name + config for part in ("dab", "refine", "two_stage"))


@pytest.mark.parametrize("name", FILES)
def test_every_name_and_shape_of_a_released_file_has_its_place(name):
    config, changes = FILES[name]
    with torch.device("meta"):
        model = instantiate(changed(config, changes))
    state = {}
    for index, (key, shape) in enumerate(sorted(shapes_of(name).items())):
        first = HEADS.sub(r"\1.0.", key) if shared_heads(name) else key
        state[key] = state[first] if first in state else torch.tensor(float(index)).expand(shape)
    layout = find_layout(state, model)
    assert layout is not None
    converted = layout.convert(state, model)
    assert not converted.left_out and len(converted.row_names) in (80, 91, 1203)
    own = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith(DERIVED)}
    found = {k: tuple(v.shape) for k, v in converted.state.items() if not k.endswith(DERIVED)}
    assert found.keys() == own.keys()
    by_class = ("class_heads.", "queries.class_head.", "denoising.label_embedding.")  # 91 or 92 rows there
    assert not [k for k in own if found[k] != own[k] and not k.startswith(by_class)]


def with_patterns(state):
    state["transformer.patterns.weight"] = torch.zeros(3, 256)


def with_masks(state):
    for key in list(state):
        state[f"detr.{key}"] = state.pop(key)
    state["detr.class_embed.weight"] = torch.zeros(251, 256)
    state["bbox_attention.q_linear.weight"] = torch.zeros(256, 256)


def of_one_scale(state):
    for key in [key for key in state if key.startswith("input_proj.") and not key.startswith("input_proj.0.")]:
        del state[key]
    state["transformer.level_embed"] = torch.zeros(1, 256)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("detr_official_dab_r50", with_patterns, "it has 3 patterns of content for each anchor"),
        ("detr_official_detr_r50", with_masks, "it gives masks for 250 classes of things and stuff"),
        ("detr_official_deformable_r50", of_one_scale, "it reads 1 levels of features, the model 4"),
    ],
)
def test_a_file_of_another_model_is_refused_by_what_it_is(name, change, what):
    with torch.device("meta"):
        model = instantiate(changed(*FILES[name]))
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes_of(name).items()}
    change(state)
    layout = find_layout(state, model)
    with pytest.raises(ValueError, match=what):
        layout.convert(state, model)


def test_a_dilated_backbone_is_told_by_the_name_of_its_file():
    name = "detr_official_detr_r50"
    with torch.device("meta"):
        model = instantiate(changed(*FILES[name]))
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes_of(name).items()}
    with pytest.raises(CheckpointError, match=r"stride 16, the model's is at 32: .*output_stride: 16"):
        load_file(model, "folder/detr-r50-dc5-f0fb7ef5.pth", checkpoint={"model": state})
    with torch.device("meta"):
        dilated = instantiate(changed(FILES[name][0], {"backbone.bottom_up.model_kwargs": {"output_stride": 16}}))
    find_layout(state, dilated).heed_name("detr-r50-dc5-f0fb7ef5.pth", dilated)


@pytest.mark.parametrize("name", WHOLE)
def test_a_released_file_loads_by_its_name_alone(name, tmp_path):
    numbers = write(name, tmp_path / "file.pth", shared_heads(name))
    model = empty_model(*FILES[name])
    ledger = load_file(model, tmp_path / "file.pth", names=row_names(80))
    assert (
        ledger.source != str(tmp_path / "file.pth")
        and not ledger.missing
        and not ledger.unexpected
        and not ledger.conflicts
    )
    found: set[float] = set()
    for key, value in model.state_dict().items():
        if not key.endswith(DERIVED):
            assert torch.isfinite(value).all(), key
            found.update(numbers_in(value))
    dropped = {key for keys in ledger.left_out.values() for key in keys}
    lost = [key for key, number in numbers.items() if number not in found and key not in dropped]
    lost = [key for key in lost if not key.endswith(DERIVED) and not is_copy(key)]
    assert not lost, lost


def is_copy(key: str) -> bool:
    """Heads that every layer shares, written once a layer, and again inside the decoder."""
    return ".decoder.class_embed." in key or ".decoder.bbox_embed." in key
