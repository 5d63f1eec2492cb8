"""Every row's config loads strictly, is thin, and builds what it says."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import HookBase

from aligndet.proposal_data import make_proposals
from polydet.engine import load_config, run

ROOT = Path(__file__).parents[2] / "configs"
ROWS = sorted((ROOT / "aligndet").glob("*.py"))
# one of each kind is built, on no device; all are loaded
BUILT = [
    "pretrain_fcos_r50_1x",
    "pretrain_retinanet_r50_swav_1x",
    "pretrain_faster_rcnn_r50_cls_only_1x",
    "pretrain_detr_r50_50ep",
    "pretrain_mask_rcnn_swin_s_1x",
    "table2_fcos_r50_12k_align",
    "table3_mask_rcnn_mobilenet_v2_1x_base",
    "table4_detr_r50_voc_align",
    "table5_mask_rcnn_r50_mocov2_1x_align",
]


class Lengths(HookBase):
    """Writes the length of the momentum schedule and the steps that a run came to."""

    def __init__(self, path):
        self.path = Path(path)

    def after_train(self):
        self.path.write_text(f"{self.trainer.raw_model.total_steps} {self.trainer.iter}")


def test_there_is_a_config_for_every_row():
    assert len(ROWS) == 91


@pytest.mark.parametrize("path", ROWS, ids=lambda p: p.stem)
def test_row_is_thin_and_names_its_output(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 25 and text.startswith('"""')
    for line in text.splitlines():
        if 'aligned="' in line:
            start = line.split('aligned="')[1].split('"')[0]
            assert (path.parent / f"{start}.py").is_file(), start


@pytest.mark.parametrize("name", BUILT)
def test_row_builds(name):
    cfg = load_config(ROOT / "aligndet" / f"{name}.py")
    assert cfg.train.output_dir.endswith(name)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    assert {g["weight_decay"] for g in groups} <= {cfg.optimizer.weight_decay, 0.0}
    schedule = cfg.lr_multiplier.copy()
    schedule.update(max_iter=cfg.train.max_iter, iters_per_epoch=7393.0)
    multiplier = instantiate(schedule)
    assert multiplier(0.999) < multiplier(0.5) == 1.0
    if name.startswith("pretrain"):
        assert not any(p.requires_grad for p in model.online.detector.backbone.bottom_up.parameters())
        assert model.total_steps == cfg.train.max_iter
        assert cfg.dataloader.train.mapper.max_proposals == (50 if "retina" in name or "detr" in name else None)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("table2_fcos_r50_90k_base", (0.01, 1e-4)),
        ("table2_fcos_r50_90k_align", (0.015, 5e-5)),
        ("table2_faster_rcnn_r50_90k_align", (0.03, 5e-5)),
        ("table5_mask_rcnn_r50_swav_1x_align", (0.03, 5e-6)),
        ("table3_mask_rcnn_simmim_swin_b_3x_align", (9e-5, 2.5e-3)),
        ("table3_cbnetv2_swin_l_1x_align", (8e-4, 2.5e-3)),
    ],
)
def test_learning_rate_rule(name, rates):
    cfg = load_config(ROOT / "aligndet" / f"{name}.py")
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == rates


@pytest.mark.parametrize(
    ("name", "norm", "freeze_at"),
    [
        ("table2_fcos_r50_90k_align", "eval", 2),
        ("table3_mask_rcnn_r18_1x_base", "eval", 2),
        ("table4_retinanet_r50_voc_align", "eval", 2),
        ("table4_detr_r50_voc_align", "eval", 2),
        ("table2_detr_r50_50ep_base", "sync", 0),
        ("table5_mask_rcnn_r50_swav_1x_align", "sync", 0),
        ("pretrain_fcos_r50_1x", "frozen", 0),
    ],
)
def test_norms_of_the_backbone_are_the_published_ones(name, norm, freeze_at):
    model = load_config(ROOT / "aligndet" / f"{name}.py").model
    bottom_up = (model.adapter.detector if name.startswith("pretrain") else model).backbone.bottom_up
    assert (bottom_up.norm, bottom_up.freeze_at) == (norm, freeze_at)


def test_momentum_takes_the_length_that_epochs_give(card, tmp_path):
    """`train.max_epochs` is turned into steps after the model is built."""
    make_proposals(card.name, tmp_path / "p", min_side=12)
    overrides = ["train.max_epochs=2", "train.device=cpu", "train.pictures=0", f"train.output_dir={tmp_path / 'run'}"]
    overrides += [f"dataloader.train.datasets=[{card.name}]", f"dataloader.train.proposals={tmp_path / 'p'}"]
    overrides += ["dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"]
    overrides += ["dataloader.train.mapper.short_edge_lengths=[64]"]
    detector = "model.adapter.detector"
    overrides += [f"{detector}.backbone.bottom_up.{key}" for key in ("name=resnet18", "weights=null")]
    overrides += [f"{detector}.backbone.out_channels=16", f"{detector}.head.num_convs=1"]
    cfg = load_config(ROOT / "aligndet" / "pretrain_fcos_r50_1x.py", overrides)
    cfg.train.hooks.append(LazyCall(Lengths)(path=str(tmp_path / "lengths")))
    run(cfg)
    assert (tmp_path / "lengths").read_text() == "11 11"  # 11 images with proposals, two epochs of pairs


def test_grid_rows_are_overrides():
    cfg = load_config(ROOT / "aligndet" / "table2_detr_r50_50ep_align.py", ["data.percent=5", "data.fold=3"])
    assert (cfg.dataloader.train.percent, cfg.dataloader.train.fold) == (5, 3)


def test_quickstart_is_one_config_of_stages():
    cfg = load_config(ROOT / "quickstart" / "aligndet.py")
    assert list(cfg.stages) == ["backbone", "proposals", "pretrain", "finetune"]
    assert cfg.stages.pretrain.model.total_steps == cfg.stages.pretrain.train.max_iter
    model = instantiate(cfg.stages.finetune.model)
    assert model.num_classes == 8
