"""Every config of the family builds, and the members have the papers' sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from polydet.detr import DETR
from polydet.engine.config import load_config, stage_config
from polydet.model_zoo.zoo import config_root

# trainable parameters, in millions, of the authors' code with COCO's 91 classes; DINO with 100 queries: METR, table 4
AUTHORS = {
    "detr": (41.30, {}),
    "conditional_detr": (43.20, {}),
    "dab_detr": (43.45, {}),
    "deformable_detr": (39.85, {}),
    "deformable_detr_refine": (40.63, {}),
    "deformable_detr_two_stage": (40.96, {}),
    "dab_deformable_detr": (47.18, {}),
    "dino": (46.67, {}),
    "dino_5scale": (47.03, {"share_heads": True}),
}
PATTERNS = (
    "codetr/*_k0.py",
    "metr/table2_dino_r50_50ep.py",
    "metr/table2_dino_r50_12ep.py",
    "metr/table3_d*_detr_r50_50ep.py",
)
ROWS = sorted(p.relative_to(config_root()).as_posix() for pattern in PATTERNS for p in config_root().glob(pattern))
QUICKSTARTS = sorted(path.name for path in (config_root() / "quickstart" / "detr").glob("*.py"))


def trainable(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6


def model_config(path: Path):
    cfg = LazyConfig.load(str(path)).model
    cfg.backbone.bottom_up.weights = None
    return cfg


@pytest.mark.parametrize("name", list(AUTHORS))
def test_parameters_are_within_one_percent(name: str) -> None:
    published, changes = AUTHORS[name]
    cfg = model_config(config_root() / "common" / "models" / f"{name}.py")
    cfg.num_classes = 91
    cfg.update(changes)
    with torch.device("meta"):
        model = instantiate(cfg)
    assert trainable(model) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("name", "prior"),
    [
        ("detr", None),
        ("conditional_detr", 0.0),
        ("dab_detr", 0.0),
        ("deformable_detr", -2.0),
        ("deformable_detr_refine", -2.0),
        ("deformable_detr_two_stage", 0.0),
        ("deformable_detr_pp", 0.0),
        ("dab_deformable_detr", -2.0),
        ("dn_dab_deformable_detr", -2.0),
        ("dino", 0.0),
    ],
)
def test_first_boxes_are_as_small_as_the_authors(name: str, prior: float | None) -> None:
    assert model_config(config_root() / "common" / "models" / f"{name}.py").box_prior == prior


def test_dino_of_metr_is_within_one_percent() -> None:
    cfg = load_config(config_root() / "metr" / "table2_dino_r50_12ep.py")
    cfg.model.backbone.bottom_up.weights = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.num_classes == 80
    assert model.queries.num_queries == 100
    assert trainable(model) == pytest.approx(46.5, rel=0.01)


def test_there_are_rows() -> None:
    assert len(ROWS) >= 16
    assert len(QUICKSTARTS) == 11


@pytest.mark.parametrize("row", ROWS)
def test_rows_build_with_their_optimiser(row: str) -> None:
    cfg = load_config(config_root() / row)
    cfg.model.backbone.bottom_up.weights = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert isinstance(model, DETR)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([0.1 * cfg.optimizer.lr, cfg.optimizer.lr])
    assert cfg.lr_multiplier.milestones[0] < cfg.train.max_epochs
    assert cfg.dataloader.train.total_batch_size == cfg.train.reference_batch_size
    assert cfg.train.clip_grad.value == 0.1


@pytest.mark.parametrize(
    ("row", "rate", "factor"),
    [
        ("codetr/table2_deformable_detr_r50_36ep_k0.py", 2e-4, 0.1),  # the rates of Deformable-DETR's repository
        ("codetr/table3_deformable_detr_pp_r50_12ep_k0.py", 2e-4, 0.1),
        ("metr/table3_deformable_detr_r50_50ep.py", 1e-4, 1.0),  # METR's paper states its own
    ],
)
def test_where_attention_looks_learns_at_its_authors_rate(row: str, rate: float, factor: float) -> None:
    cfg = load_config(config_root() / row)
    cfg.model.backbone.bottom_up.weights = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    rates = {id(p): g["lr"] for g in instantiate(cfg.optimizer).param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = "sampling_offsets" in name or name.startswith("queries.reference")
        expected = rate * (factor if slow else 0.1 if name.startswith("backbone.bottom_up.") else 1.0)
        assert rates[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_quickstarts_build(name: str) -> None:
    cfg = load_config(config_root() / "quickstart" / "detr" / name)
    if "stages" in cfg:  # the first one makes the backbone
        cfg = stage_config(cfg, "train")
        cfg.model.backbone.bottom_up.weights = None
    assert cfg.model.backbone.bottom_up.weights is None  # nothing to download
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.num_classes == 8
    assert trainable(model) < 15
