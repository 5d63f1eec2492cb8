"""A run that goes on from a checkpoint ends with the weights of one that was never stopped, to the bit."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from omegaconf import OmegaConf
from torch import nn

from polydet.data import DatasetCard, register_card
from polydet.data.shapeworld.generate import write_part
from polydet.engine import ConfigError, run, running
from polydet.engine.build import eval_period
from polydet.engine.plateau import PlateauSchedule
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
        cfg.model.backbone.bottom_up.update(name="resnet18", weights=None, model_kwargs=dict(channels=(8, 16, 24, 32)))
        cfg.model.backbone.out_channels = 16
        if name == "fcos":
            cfg.model.head.num_convs = 1
        else:
            cfg.model.backbone.top_block.in_channels = 32
            cfg.model.head.conv_dims = [16]
            cfg.model.head.input_shape = [{"_target_": "detectron2.layers.ShapeSpec", "channels": 16}] * 5
        train, test = cfg.dataloader.train, cfg.dataloader.test
        train.update(datasets=[card], total_batch_size=2, num_workers=0)
        train.mapper.augmentations.update(short=[64, 80], max_size=128)
        test.update(num_workers=0)
        test.mapper.augmentations.update(short=64, max_size=128)
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


def run_and_resume(cfg, checkpoint, tmp_path):
    """Final checkpoints of a run and of one that was killed after ``checkpoint``; their weights are the same."""
    cfg.train.output_dir = str(tmp_path / "whole")
    run(cfg)
    cfg.train.output_dir = str(stopped_at(checkpoint, tmp_path / "whole", tmp_path / "resumed"))
    run(cfg, resume=True)
    both = [torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "resumed")]
    expected, found = (checkpoint["model"] for checkpoint in both)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    return both


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_dense_detectors_of_detectron2(small, tmp_path, name):
    both = run_and_resume(small(name), "model_0000001", tmp_path)
    whole, resumed = (checkpoint["trainer"]["hooks"]["RunningAverages"]["ranks"] for checkpoint in both)
    assert whole == resumed and list(whole[0]) == [".loss_normalizer"]
    losses = [
        [json.loads(line)["total_loss"] for line in (tmp_path / run / "metrics.json").read_text().splitlines()]
        for run in ("whole", "resumed")
    ]
    assert losses[0][2:] == losses[1]


def test_a_plateau_schedule_from_the_checkpoint_of_an_evaluation_step(small, card, tmp_path):
    cfg = small("fcos")
    cfg.dataloader.test_datasets = [card]
    cfg.train.update(max_iter=6, eval_period_epochs=0.5)  # of four steps
    cfg.train.hooks = [L(PlateauSchedule)(metric=f"{card}/bbox/AP", patience=1, stop_patience=50)]
    both = run_and_resume(cfg, "model_0000003", tmp_path)
    saved = torch.load(tmp_path / "whole" / "model_0000003.pth", weights_only=True)["trainer"]["hooks"]
    assert saved["PlateauSchedule"]["seen"] == 3 and saved["PlateauSchedule"]["lr"] < cfg.optimizer.lr
    whole, resumed = (checkpoint["trainer"]["hooks"]["PlateauSchedule"] for checkpoint in both)
    assert whole == resumed


def test_a_resumed_run_keeps_no_more_checkpoints(small, tmp_path):
    cfg = small("fcos")
    cfg.train.update(output_dir=str(tmp_path), max_iter=4, checkpoint_period=1, max_checkpoints=2)
    run(cfg)
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    (tmp_path / "DONE").unlink()
    cfg.train.max_iter = 5
    run(cfg, resume=True)
    left = sorted(path.name for path in tmp_path.glob("model_*.pth"))
    assert left == ["model_0000003.pth", "model_0000004.pth", "model_final.pth"]


@pytest.mark.parametrize(
    ("keys", "length", "message"),
    [({"eval_period": 5}, 10.0, "exclude each other"), ({}, 0.0, "train.eval_period_epochs needs")],
)
def test_evaluation_periods_that_cannot_be_meant(keys, length, message):
    train = OmegaConf.create({"eval_period": 0, "eval_period_epochs": 1.0, **keys})
    with pytest.raises(ConfigError, match=message):
        eval_period(train, length)


@pytest.mark.parametrize(("epochs", "length", "steps"), [(1, 7.4, 7), (2, 7.4, 15), (1, 0.6, 1), (0.01, 7.4, 1)])
def test_evaluation_periods_in_epochs_are_to_the_nearest_step(epochs, length, steps):
    assert eval_period(OmegaConf.create({"eval_period": 0, "eval_period_epochs": epochs}), length) == steps
    assert eval_period(OmegaConf.create({"eval_period": 3, "eval_period_epochs": 0.0}), length) == 3


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
