"""A training whose numbers blow up ends in one sentence and a saved step that names the module, in every paper."""

import json
from pathlib import Path

import pytest
import torch
from small_rows import COMMON, FAMILIES, PRETRAIN

from aligndet.proposal_data import make_proposals
from polydet import model_zoo
from polydet.engine import load_config
from polydet.engine.nonfinite import NonFiniteError
from polydet.engine.run import run
from polydet.engine.trainer import Trainer


@pytest.mark.parametrize(
    ("family", "factor"),
    [
        ("ScaleDet", float("nan")),
        ("METR", float("nan")),
        ("METR", 1e15),  # finite weights, whose products are not
        ("Co-Deformable-DETR", float("nan")),
        ("Co-Deformable-DETR", 1e15),
        ("DetCLIPv2", float("nan")),
        ("AlignDet", float("nan")),
    ],
)
def test_it_stops_with_a_saved_step(anywhere, tmp_path, monkeypatch, family, factor):
    row, overrides = PRETRAIN if family == "AlignDet" else FAMILIES[family]
    without = {"DetCLIPv2": ["dataloader.train.num_workers"], "AlignDet": ["dataloader.test"]}.get(family, [])
    if family == "AlignDet":
        make_proposals("coco_2017_train", tmp_path / "proposals" / "coco_2017_train", mode="fast")
        monkeypatch.setenv("POLYDET_PROPOSALS", str(tmp_path / "proposals"))
    common = [override for override in COMMON if not override.startswith(tuple(without) or ("\0",))]
    cfg = load_config(model_zoo.config_path(row), [*common, *overrides, f"train.output_dir={tmp_path / 'run'}"])
    step = Trainer.run_step

    def diverged(trainer):
        with torch.no_grad():
            for parameter in trainer.raw_model.parameters():
                parameter.mul_(factor)
        step(trainer)

    monkeypatch.setattr(Trainer, "run_step", diverged)
    with pytest.raises(
        NonFiniteError, match=r"^iteration 0: .*not finite; the step is saved: .*replay_step\.py"
    ) as error:
        run(cfg)
    folder = Path(str(error.value).split()[-1])
    assert json.loads((folder / "info.json").read_text())["iteration"] == 0
    assert (folder / "model.pth").is_file() and (folder / "batch_rank0.pth").is_file()
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "DONE").exists()
