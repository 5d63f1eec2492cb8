"""Every row's config loads strictly, is thin, and builds what it says."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

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


@pytest.mark.parametrize("name", ["pretrain_cbnetv2_swin_l_1x", "table3_cbnetv2_swin_l_1x_base"])
def test_cbnet_is_trained_as_published(name):
    """SmoothL1 x 1 and no norms in the box heads, SmoothL1 of beta 1/9 and 2000 boxes in the RPN."""
    model = load_config(ROOT / "aligndet" / f"{name}.py").model
    detector = model.adapter.detector if "adapter" in model else model
    rpn = detector.proposal_generator
    assert rpn.smooth_l1_beta == pytest.approx(1 / 9) and rpn.get("box_reg_loss_type", "smooth_l1") == "smooth_l1"
    assert (rpn.post_nms_topk[0], rpn.anchor_boundary_thresh) == (2000, 0)
    head = instantiate(detector.roi_heads.box_heads[0])
    assert not [m for m in head.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    if "adapter" in model:
        assert model.adapter.rpn_weight == 1.5 and not model.adapter.get("refine", False)
    torch.manual_seed(0)
    low = torch.rand(8, 2) * 50
    boxes = torch.cat([low, low + 20 + torch.rand(8, 2) * 30], 1)
    truth, deltas = boxes + torch.randn(8, 4), torch.randn(8, 4)
    for stage, (centre, size, weight) in enumerate(((0.1, 0.2, 1.0), (0.05, 0.1, 0.5), (0.033, 0.067, 0.25))):
        node = detector.roi_heads.box_predictors[stage].copy()
        predictor = instantiate(node.update(num_classes=1) or node)
        proposals = Instances((200, 200), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(truth))
        proposals.gt_classes = torch.tensor([0] * 6 + [1] * 2)  # two of background
        with EventStorage(0):
            loss = predictor.losses((torch.zeros(8, 2), deltas), [proposals])["loss_box_reg"]
        wide, wanted = (b[:, 2:] - b[:, :2] for b in (boxes, truth))
        shift = ((truth[:, :2] + truth[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2 / wide
        target = torch.cat([shift / centre, (wanted / wide).log() / size], 1)
        expected = torch.nn.functional.smooth_l1_loss(deltas[:6], target[:6], reduction="sum") / 8
        torch.testing.assert_close(loss, weight * expected)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("table2_detr_r50_50ep_align", 500),
        ("table2_detr_r50_100ep_base", 500),
        ("table4_detr_r50_voc_align", 0),
        ("table6_detr_r50_sup_150ep_base", 0),
        ("table2_fcos_r50_12k_align", 500),
    ],
)
def test_warm_up_is_the_published_one(name, steps):
    schedule = load_config(ROOT / "aligndet" / f"{name}.py").lr_multiplier
    assert schedule.warmup_iters == steps
    schedule.update(max_iter=1000, iters_per_epoch=100.0)
    start = instantiate(schedule)(0.0)
    assert start == pytest.approx(1.0 if not steps else 1 / 3 if "fcos" in name else 1e-3)


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
