"""tools/replay_step.py repeats a failed step as the run did it."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn

from polydet.backbones import TimmBackbone
from polydet.engine import save_config, trust
from polydet.engine.nonfinite import NonFiniteError
from polydet.engine.sentinels import NonFiniteReplay
from polydet.engine.trainer import Trainer

TOOL = Path(__file__).resolve().parents[2] / "tools" / "replay_step.py"


class Overflows(nn.Module):
    """Its products are beyond float16's range, and within float32's."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.wide = nn.Linear(1, 1)

    def forward(self, batch):
        return {"loss": self.wide(torch.stack([item["x"] for item in batch])).mean()}


def test_under_the_runs_autocast_and_without_published_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trust, "_allowed", {f"{__name__}.Overflows"})  # which a saved config may not call by itself
    part = L(TimmBackbone)(name="resnet10t", weights=None)
    model = Overflows(TimmBackbone(name="resnet10t", weights=None))
    nn.init.constant_(model.wide.weight, 300.0)
    cfg = {"model": L(Overflows)(backbone=part), "train": {"amp": {"dtype": "float16"}}}
    cfg["model"].backbone.weights = str(tmp_path / "absent.safetensors")
    save_config(OmegaConf.create(cfg, flags={"allow_objects": True}), tmp_path / "config.yaml")
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), dtype="float16")
    trainer.batch, trainer.iter = [{"x": torch.full((1,), 300.0), "file_name": "a.jpg"}], 3
    folder = NonFiniteReplay(tmp_path).save(trainer, NonFiniteError("loss", {"loss": float("inf")}))
    monkeypatch.setattr(sys, "argv", ["replay_step.py", str(folder)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 0 and "first non-finite output: wide" in capsys.readouterr().out
