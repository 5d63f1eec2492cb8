"""A run that goes on from a checkpoint ends with the weights of one that was never stopped, to the bit."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from omegaconf import OmegaConf
from torch import nn

from polydet.data import DatasetCard, register_card
from polydet.data.shapeworld.generate import write_part
from polydet.engine import run, running
from polydet.engine.running import RunningAverages

COMMON = Path(__file__).resolve().parent.parent.parent / "configs" / "common"


def common(file, key):
    return LazyConfig.load(str(COMMON / file), (key,))[0]


@pytest.fixture
def card(tmp_path):
    write_part("coco", tmp_path / "pictures", {"train": 8})
    folder = tmp_path / "pictures"
    card = DatasetCard("resume_test", str(folder / "instances_train.json"), str(folder / "train"))
    return register_card(card, overwrite=True).name


@pytest.fixture
def small(card):
    """The config of a dense detector, cut to toy size."""

    def build(name):
        keys = {
            "model": common(f"models/{name}.py", "model"),
            "dataloader": common("data.py", "dataloader"),
            "optimizer": common("optim.py", "sgd"),
            "lr_multiplier": common("schedules.py", "constant"),
            "train": common("train.py", "train"),
        }
        cfg = OmegaConf.create(keys, flags={"allow_objects": True})
        cfg.model.backbone.bottom_up.update(name="resnet18", weights=None)
        cfg.model.backbone.out_channels = 16
        if name == "fcos":
            cfg.model.head.num_convs = 1
        else:
            cfg.model.backbone.top_block.in_channels = 512
            cfg.model.head.conv_dims = [16]
            cfg.model.head.input_shape = [{"_target_": "detectron2.layers.ShapeSpec", "channels": 16}] * 5
        train, test = cfg.dataloader.train, cfg.dataloader.test
        train.update(datasets=[card], total_batch_size=2, num_workers=0)
        train.mapper.augmentations.update(short=[64, 80], max_size=128)
        test.update(num_workers=0)
        cfg.dataloader.test_datasets = []
        cfg.train.update(device="cpu", max_iter=4, checkpoint_period=2, max_checkpoints=10, pictures=0, log_period=1)
        cfg.optimizer.lr = 0.01
        return cfg

    return build


def stopped_at(checkpoint, whole, folder):
    """What a run that was killed after ``checkpoint`` was written leaves."""
    folder.mkdir()
    shutil.copy(whole / f"{checkpoint}.pth", folder)
    (folder / "last_checkpoint").write_text(f"{checkpoint}.pth")
    return folder


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_dense_detectors_of_detectron2(small, tmp_path, name):
    cfg = small(name)
    cfg.train.output_dir = str(tmp_path / "whole")
    run(cfg)
    saved = torch.load(tmp_path / "whole" / "model_0000001.pth", weights_only=True)
    assert list(saved["trainer"]["hooks"]["RunningAverages"]["ranks"][0]) == [".loss_normalizer"]
    folder = stopped_at("model_0000001", tmp_path / "whole", tmp_path / "resumed")
    cfg.train.output_dir = str(folder)
    run(cfg, resume=True)
    expected, found = (torch.load(path / "model_final.pth", weights_only=True) for path in (tmp_path / "whole", folder))
    assert all(torch.equal(value, found["model"][key]) for key, value in expected["model"].items())
    hooks = [checkpoint["trainer"]["hooks"] for checkpoint in (expected, found)]
    assert hooks[0]["RunningAverages"] == hooks[1]["RunningAverages"]
    losses = [
        [json.loads(line)["total_loss"] for line in (path / "metrics.json").read_text().splitlines()]
        for path in (tmp_path / "whole", folder)
    ]
    assert losses[0][2:] == losses[1]


class Averaging(nn.Module):
    def _ema_update(self):
        """The sign by which such modules are known."""


class FakeTrainer:
    def __init__(self, value=None):
        self.raw_model = nn.Sequential(nn.Linear(1, 1), Averaging())
        self.raw_model[0].loss_normalizer = 1.0  # a setting of a keypoint head, not an average
        self.iter, self.max_iter = 1, 10
        if value is not None:
            self.raw_model[1].loss_normalizer = value


def hook_of(trainer, state=None):
    hook = RunningAverages(2)
    hook.trainer = trainer
    if state:
        hook.load_state_dict(state)
    hook.before_train()
    return hook


def test_every_process_has_its_own_average(monkeypatch, caplog):
    hook = hook_of(FakeTrainer(5.0))
    hook.trainer.iter = 0
    hook.after_step()
    assert hook.state_dict() == {}  # nothing is due
    monkeypatch.setattr(running.comm, "all_gather", lambda value: [value, {"1.loss_normalizer": 7.0}])
    hook.trainer.iter = 1
    hook.after_step()
    state = hook.state_dict()
    assert state == {"ranks": [{"1.loss_normalizer": 5.0}, {"1.loss_normalizer": 7.0}]}
    monkeypatch.setattr(running.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(running.comm, "get_rank", lambda: 1)
    assert hook_of(FakeTrainer(), state).trainer.raw_model[1].loss_normalizer == 7.0
    monkeypatch.setattr(running.comm, "get_world_size", lambda: 1)
    with caplog.at_level(logging.WARNING, "polydet"):
        assert hook_of(FakeTrainer(), state).trainer.raw_model[1].loss_normalizer == 5.0
    assert "2 processes" in caplog.text


def test_a_model_without_averages_saves_nothing():
    hook = hook_of(FakeTrainer())
    hook.after_step()
    assert hook.state_dict() == {}
