"""Detic's and CenterNet2's files in ScaleDet."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from released_names import numbers_in, shapes_of, write

from polydet.engine import CheckpointError, load_config, load_file
from polydet.engine.layouts import find_layout
from polydet.engine.ledger import DERIVED
from polydet.text import LabelSpace, Vocabulary
from scaledet.checkpoint import from_detic

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CENTERNET2 = "scaledet_centernet2_r50"
FILES = {
    "scaledet_detic_r50": ("table1_scaledet_r50_l_c", {"layer2.0.conv1.weight", "layer2.0.bn1.running_var"}),
    "scaledet_detic_swin_b": ("table2_scaledet_swin_b_clip", {"layers_1.downsample.reduction.weight"}),
}


def words():
    """Two labels in CLIP's width."""
    rows = torch.nn.functional.normalize(torch.randn(2, 512), dim=1)
    return Vocabulary(("cat", "dog"), ("a {}",), "none", rows)


def built(row):
    """The model of a config with two words."""
    cfg = load_config(CONFIGS / f"{row}.py").model
    cfg.update(text_encoder=None, vocabulary=L(words)())
    cfg.label_space = L(LabelSpace)(names_by_dataset={"a": ["cat", "dog"]})
    cfg.roi_heads.text_dim = 512
    if "weights" in cfg.backbone.bottom_up:
        cfg.backbone.bottom_up.weights = None
    torch.manual_seed(0)
    return instantiate(cfg)


@pytest.fixture(params=FILES)
def case(request, tmp_path):
    row, keys = FILES[request.param]
    model = built(f"scaledet/{row}")
    return model, write(request.param, tmp_path / "detic.pth"), tmp_path / "detic.pth", keys


def test_every_tensor_that_scaledet_has_is_filled(case):
    model, numbers, path, keys = case
    ledger = load_file(model, path)
    assert not ledger.missing and not ledger.unexpected and not ledger.conflicts
    state = model.state_dict()
    found = {v for k, value in state.items() if value.is_floating_point() for v in numbers_in(value)}
    dropped = {key for keys in ledger.left_out.values() for key in keys}
    assert {key.split(".")[1] for key in dropped} <= {"mask_head", "box_predictor", "bottom_up"}
    lost = [key for key, number in numbers.items() if number not in found and key not in dropped]
    assert not [key for key in lost if not key.endswith("relative_position_index")]
    assert all(f"backbone.bottom_up.body.{key}" in ledger.loaded for key in keys)
    scales = [numbers[f"proposal_generator.centernet_head.scales.{i}.scale"] for i in range(5)]
    assert state["proposal_generator.head.scales"].tolist() == scales


def test_centernet2_starts_all_but_the_last_layers_and_another_model_of_theirs_is_named():
    model = built("released/scaledet_centernet2_r50")
    state = {key: torch.tensor(float(i)).expand(s) for i, (key, s) in enumerate(shapes_of(CENTERNET2).items())}
    found = from_detic(dict(state), model)
    own = {key: value.shape for key, value in model.state_dict().items()}
    assert all(own[key] == value.shape for key, value in found.state.items())
    last = ("cls_score", "bbox_pred")
    rest = {key for key in own.keys() - found.state.keys() if not DERIVED.search(key)}
    assert rest and all(key.startswith("roi_heads.box_predictor.") and key.split(".")[3] in last for key in rest)
    dropped = {key for keys in found.left_out.values() for key in keys}
    assert len(dropped) == 12 and all(key.split(".")[3] in last for key in dropped)
    assert find_layout(state, model).convert is from_detic
    for key, what in {
        "proposal_generator.rpn_head.conv.weight": "its first stage is an RPN with anchors",
        "proposal_generator.centernet_head.cls_tower.0.weight": "it is CenterNet alone",
        "roi_heads.box_head.fc1.weight": "it has one stage of boxes",
        "backbone.bottom_up.level3.tree1.conv1.weight": "its backbone is a DLA",
        "backbone.bottom_up.res2.0.convs.0.weight": "its backbone is a Res2Net",
        "backbone.bottom_up.res4.0.conv2_offset.weight": "it has deformable convolutions",
        "backbone.bottom_up.base.conv1.weight": "its backbone is timm's, the model's is Detectron2's own ResNet",
    }.items():
        other = {k: v for k, v in state.items() if "base" not in key or "bottom_up" not in k}
        with pytest.raises(ValueError, match=what):
            from_detic({**other, key: torch.ones(1)}, model)


def test_another_models_file_is_named(tmp_path):
    write("detr_official_detr_r50", tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match=r"a DETR in its authors' names, whose weights a Linear cannot take"):
        load_file(torch.nn.Linear(1, 1), tmp_path / "detr.pth")
