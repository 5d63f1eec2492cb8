"""Detic's files in ScaleDet."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from released_names import write

from polydet.engine import CheckpointError, load_config, load_file
from polydet.text import LabelSpace, Vocabulary

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = {
    "scaledet_detic_r50": ("table1_scaledet_r50_l_c", {"layer2.0.conv1.weight", "layer2.0.bn1.running_var"}),
    "scaledet_detic_swin_b": ("table2_scaledet_swin_b_clip", {"layers_1.downsample.reduction.weight"}),
}


def words():
    """Two labels in CLIP's width."""
    rows = torch.nn.functional.normalize(torch.randn(2, 512), dim=1)
    return Vocabulary(("cat", "dog"), ("a {}",), "none", rows)


@pytest.fixture(params=FILES)
def case(request, tmp_path):
    row, keys = FILES[request.param]
    cfg = load_config(CONFIGS / "scaledet" / f"{row}.py").model
    cfg.update(text_encoder=None, vocabulary=L(words)())
    cfg.label_space = L(LabelSpace)(names_by_dataset={"a": ["cat", "dog"]})
    cfg.roi_heads.text_dim = 512
    cfg.backbone.bottom_up.weights = None
    torch.manual_seed(0)
    model = instantiate(cfg)
    return model, write(request.param, tmp_path / "detic.pth"), tmp_path / "detic.pth", keys


def test_every_tensor_that_scaledet_has_is_filled(case):
    model, numbers, path, keys = case
    ledger = load_file(model, path)
    assert not ledger.missing and not ledger.unexpected and not ledger.conflicts
    state = model.state_dict()
    found = {v for k, value in state.items() if value.is_floating_point() for v in value.unique().tolist()}
    dropped = {key for keys in ledger.left_out.values() for key in keys}
    assert {key.split(".")[1] for key in dropped} <= {"mask_head", "box_predictor", "bottom_up"}
    lost = [key for key, number in numbers.items() if number not in found and key not in dropped]
    assert not [key for key in lost if not key.endswith("relative_position_index")]
    assert all(f"backbone.bottom_up.body.{key}" in ledger.loaded for key in keys)
    scales = [numbers[f"proposal_generator.centernet_head.scales.{i}.scale"] for i in range(5)]
    assert state["proposal_generator.head.scales"].tolist() == scales


def test_another_models_file_is_named(tmp_path):
    write("detr_official_detr_r50", tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match=r"a DETR in its authors' names, whose weights a Linear cannot take"):
        load_file(torch.nn.Linear(1, 1), tmp_path / "detr.pth")
