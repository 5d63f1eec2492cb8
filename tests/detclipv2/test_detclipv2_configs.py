"""Rows as configs: they build, and say what the tables say."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from polydet.data.shapeworld import generate
from polydet.engine import load_config
from polydet.engine.build import build_loader, build_model
from polydet.model_zoo.zoo import config_path

ROWS = sorted(path.stem for path in Path(config_path("detclipv2_swint")).parent.glob("detclipv2/*.py"))
DETECTION, GROUNDING = ["objects365_v2_train"], ["goldg_flickr_train", "goldg_gqa_train"]
CC15M, IN1K = ["cc3m_train", "cc12m_train"], ["imagenet1k_pairs_train"]


def row(name):
    return load_config(config_path(f"detclipv2/{name}"))


@pytest.mark.parametrize(
    "name", [*(f"detclipv2/{row}" for row in ROWS), "detclipv2_swint", "common/detclipv2_quickstart"]
)
def test_every_row_builds(name):
    cfg = load_config(config_path(name))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    if "quickstart" not in name:
        words = 0 if "atss" in name else 123.6
        image = 206.0 if "swin_l" in name else 38.0
        assert parameters == pytest.approx(words + image, rel=0.02)
        text = config_path(name).read_text()
        assert len(text.splitlines()) <= 30 or "goldg_cc15m.py" in str(config_path(name))


def test_pretraining_settings():
    cfg = row("supp_table5_detclipv2_swin_t_o365_goldg_cc15m")
    sources = cfg.dataloader.train.sources
    assert {name: list(s.datasets) for name, s in sources.items()} == {
        "detection": DETECTION,
        "grounding": GROUNDING,
        "pairs": CC15M,
    }
    assert [sources[name].total_batch_size for name in sources] == [128, 128, 6144]
    assert sources.detection.mapper.num_concepts == 150 and sources.grounding.mapper.num_concepts == 100
    assert cfg.optimizer.lr == pytest.approx(1e-4 * math.sqrt(128 / 16), rel=0.02)
    assert cfg.optimizer.weight_decay == 0.05
    assert dict(cfg.optimizer.params.lr_factors) == {r"^text_tower\.": 0.1}
    assert cfg.train.max_epochs == 12 and cfg.lr_multiplier.warmup_iters == 1000 and cfg.lr_multiplier.kind == "cosine"
    assert cfg.model.text_tower.context_length == 16 and cfg.model.backbone.bottom_up.drop_path_rate == 0.2
    assert (cfg.model.head.box_weight, cfg.model.head.quality_weight, cfg.model.pairs_weight) == (2.0, 1.0, 0.1)
    assert cfg.model.pairs.label_smoothing == 0.1 and cfg.model.pairs.temperature == 0.5
    assert set(cfg.dataloader.evaluators.values()) == {"lvis_fixed"}


@pytest.mark.parametrize("pixels", [224, 256, 320, 384])
def test_resolution_of_the_pairs(pixels):
    name = "supp_table5_detclipv2_swin_t_o365_cc3m"
    cfg = row(name if pixels == 320 else f"supp_table4_detclipv2_swin_t_o365_cc3m_res{pixels}")
    resize = cfg.dataloader.train.sources.pairs.mapper.mapper.augmentations
    assert (resize.height, resize.width) == (pixels, pixels)
    assert list(cfg.dataloader.train.sources.pairs.datasets) == ["cc3m_train"]


@pytest.mark.parametrize(
    ("name", "datasets", "boxes"),
    [
        ("swin_t_o365", DETECTION, 128),
        ("swin_t_o365_in1k", DETECTION + IN1K, 128),
        ("swin_t_o365_goldg_cc15m_in1k", DETECTION + GROUNDING + CC15M + IN1K, 128),
        ("swin_l_o365_goldg_cc15m", DETECTION + GROUNDING + CC15M, 256),
        ("swin_l_o365_goldg_cc15m_in1k", DETECTION + GROUNDING + CC15M + IN1K, 256),
    ],
)
def test_data_of_table_5(name, datasets, boxes):
    cfg = row(f"supp_table5_detclipv2_{name}")
    train = cfg.dataloader.train
    assert list(train.datasets) == datasets == [d for s in train.sources.values() for d in s.datasets]
    assert train.total_batch_size == train.sources.detection.total_batch_size == boxes
    assert cfg.optimizer.lr == (4e-4 if boxes == 256 else 2.8e-4)
    for source in train.sources.values():
        if list(source.datasets) == IN1K:
            assert source.repeat == 3 and source.mapper.task == "classification" and source.total_batch_size == 6144
    assert cfg.model.classification_selection.k == 1


@pytest.mark.parametrize("size", ["t", "l"])
def test_fine_tuning(size):
    lvis = row(f"supp_table6_detclipv2_swin_{size}_lvis_ft")
    assert list(lvis.dataloader.train.sources.detection.datasets) == ["lvis_v1_train"]
    assert (lvis.dataloader.train.total_batch_size, lvis.optimizer.lr, lvis.train.max_epochs) == (64, 4e-5, 24)
    assert f"swin_{size}_o365_goldg_cc15m" in lvis.train.init_checkpoint
    odinw = row(f"supp_table7_detclipv2_swin_{size}_odinw13_ft")
    assert (odinw.dataloader.train.total_batch_size, odinw.optimizer.lr, odinw.train.max_epochs) == (32, 4e-5, 250)
    assert dict(odinw.optimizer.params.lr_factors) == {r"^text_tower\.": 0.01}
    schedule = odinw.train.hooks[0]
    assert (schedule.patience, schedule.stop_patience, schedule.min_lr, schedule.factor) == (5, 8, 1e-8, 0.1)
    assert (odinw.train.eval_period_epochs, odinw.train.eval_period, schedule.warmup_iters) == (1, 0, 500)
    assert odinw.dataloader.train.sources.detection.mapper.num_concepts is None
    assert odinw.lr_multiplier.warmup_iters == 500 and odinw.lr_multiplier.kind == "constant"


def test_the_quickstart_takes_a_step_of_each_source(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(generate, "PARTS", {p: (w, dict.fromkeys(c, 30)) for p, (w, c) in generate.PARTS.items()})
    cfg = load_config(config_path("common/detclipv2_quickstart"))
    cfg.model.text_tower.encoder = {"_target_": "detclipv2_parts.Letters"}
    cfg.model.head.dim = 12
    for source in cfg.dataloader.train.sources.values():
        source.update(num_workers=0, total_batch_size=2)
    model, loader = build_model(cfg).train(), build_loader(cfg)
    seen = set()
    for batch in loader:
        losses = model(batch)
        assert all(value.isfinite() for value in losses.values())
        seen |= set(losses)
        if len(seen) == 5:
            break
    assert seen == {"loss_align", "loss_box", "loss_quality", "loss_align_grounding", "loss_words"}
