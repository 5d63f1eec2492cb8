"""A random checkpoint in exactly a released layout fills every weight of its config, and all of it is used."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf
from released_names import write

from polydet.engine import load_config, load_file
from polydet.engine.layouts import row_names

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COCO = list(row_names(80))
OWN_HEADS = {"share_heads": False}
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask")

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
}


def empty_model(config: str, changes: dict) -> torch.nn.Module:
    """The config's model without a thought for its initial values, which are all NaN."""
    cfg = load_config(CONFIGS / f"{config}.py")
    for key, value in changes.items():
        OmegaConf.update(cfg.model, key, value)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else 0)
    return model


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_a_released_file_has_its_place(name, tmp_path):
    shared = name.startswith(("detr_official", "detr_hf", "detr_mmdet")) and "dab" not in name
    config, changes = FILES[name]
    shared = shared and "refine" not in config and "two_stage" not in config and not changes
    numbers = write(name, tmp_path / "file.pth", shared)
    model = empty_model(config, changes)
    ledger = load_file(model, tmp_path / "file.pth", names=COCO)
    assert "names" in ledger.source and not ledger.missing and not ledger.unexpected and not ledger.conflicts
    found: set[float] = set()
    for key, value in model.state_dict().items():
        if not key.endswith(DERIVED):
            assert torch.isfinite(value).all(), key
            found.update(value.unique().tolist())
    dropped = {key for keys in ledger.left_out.values() for key in keys}
    lost = [key for key, number in numbers.items() if number not in found and key not in dropped]
    lost = [key for key in lost if not key.endswith(DERIVED) and not is_copy(key)]
    assert not lost, lost


def is_copy(key: str) -> bool:
    """Heads that every layer shares, written once a layer, and again inside the decoder."""
    return ".decoder.class_embed." in key or ".decoder.bbox_embed." in key
