"""Rows of the paper's tables as configs, and the sizes the paper reports."""

from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from metr_parts import HashEncoder

from polydet.engine import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = sorted((CONFIGS / "metr").glob("*.py"))


class WideEncoder(HashEncoder):
    """As wide as CLIP ViT-B/16."""

    dim = 512


@pytest.mark.parametrize("path", ROWS, ids=lambda p: p.stem)
def test_a_row_loads_and_is_thin(path):
    cfg = load_config(path)
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    assert len(path.read_text().splitlines()) <= 25


def trainable(path):
    """(model, millions of trainable parameters) of a row, with random weights and no text tower."""
    cfg = load_config(path)
    cfg.model.backbone.bottom_up.weights = None
    if "text_encoder" in cfg.model:
        cfg.model.text_encoder = L(WideEncoder)()
    model = instantiate(cfg.model)
    return model, sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6


def test_parameters_of_table_4():
    model, count = trainable(CONFIGS / "metr" / "table2_metr_r50_12ep.py")
    assert count == pytest.approx(49.5, rel=0.01)
    parts = [*model.queries.cem.parameters(), *model.language.project.parameters(), model.language.weight]
    assert sum(p.numel() for p in parts) / 1e6 == pytest.approx(2.87, rel=0.001)
    assert trainable(CONFIGS / "metr" / "table4_metr_r50_12ep_no_cem.py")[1] == pytest.approx(46.8, rel=0.01)
    assert trainable(CONFIGS / "metr" / "table4_metr_r50_12ep_dec4.py")[1] == pytest.approx(46.5, rel=0.01)


def test_parameters_of_the_dino_of_table_2():
    assert trainable(CONFIGS / "metr" / "table2_dino_r50_12ep.py")[1] == pytest.approx(46.5, rel=0.01)


def test_joint_training_merges_equal_names_only():
    cfg = load_config(CONFIGS / "metr" / "table1_metr_joint.py")
    space = instantiate(cfg.model.label_space)
    assert len(space) < 80 + 20 + 2
    assert {"person", "airplane", "aeroplane", "face", "pedestrian"} <= set(space.names)
    assert list(space.names).count("person") == 1


def test_pretraining_label_space():
    cfg = load_config(CONFIGS / "metr" / "table2_metr_r50_12ep_o365_oimg.py")
    names = [name.lower() for name in cfg.train.init.class_names]
    assert len(set(names)) == len(names) > 600
    assert cfg.model.on_vocabulary_mismatch == "transfer"
