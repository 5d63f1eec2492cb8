"""Which weights ``--eval-only`` takes: those of the run, or the ones that are named, never where the run started."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_exact_resume import card, small  # noqa: F401

from polydet.engine import ConfigError, run, save_config

TOOL = Path(__file__).resolve().parents[2] / "tools" / "lazyconfig_train_net.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("train_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def taken(monkeypatch):
    """Weights and options that were loaded, instead of an evaluation of them."""
    found = []

    def evaluate(cfg, model, output_dir, *rest):
        found.append((cfg.train.init_checkpoint, {k: v.clone() for k, v in model.state_dict().items()}))
        return {}

    monkeypatch.setitem(run.__wrapped__.__globals__, "evaluate", evaluate)
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def renamed(state):
    """A key map for published weights; the run's own would lose everything."""
    return {f"new.{key}": value for key, value in state.items() if not key.startswith("head.")}


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_the_runs_own_weights_unless_others_are_named(small, card, taken, tool, tmp_path):  # noqa: F811
    cfg = small("fcos")
    out = tmp_path / "run"
    cfg.train.update(output_dir=str(tmp_path / "start"), max_iter=1)
    run(cfg)
    start = tmp_path / "start" / "model_final.pth"
    cfg.train.update(output_dir=str(out), max_iter=2, init_checkpoint=str(start))
    run(cfg)
    cfg.dataloader.test_datasets = [card]
    cfg.train.init.update(key_map=f"{__name__}:renamed", class_names=["triangle"], skip=["backbone"])
    taken.clear()
    trained = (out / "run.json").read_text()
    save_config(cfg, tmp_path / "mine.yaml")
    arguments = ["--config-file", str(tmp_path / "mine.yaml"), "--eval-only"]
    tool.main(tool.parse_args(arguments))
    tool.main(tool.parse_args([*arguments, f"train.init_checkpoint={out / 'model_0000001.pth'}"]))
    plain = ["train.init.key_map=''", "train.init.class_names=[]", "train.init.skip=[]"]
    tool.main(tool.parse_args([*arguments, f"train.init_checkpoint={start}", *plain]))
    files = [out / "model_final.pth", out / "model_0000001.pth", start]
    assert [path for path, _ in taken] == [str(path) for path in files]
    assert all(same(found, weights(path)) for (_, found), path in zip(taken, files))
    assert (out / "run.json").read_text() == trained, "time and memory of the training"
    assert json.loads((out / "run_eval.json").read_text())["seconds"] > 0


def test_a_stage_is_evaluated_with_its_own_weights_and_says_where_it_is_from(small, card, taken, tmp_path):  # noqa: F811
    first, second = small("fcos"), small("fcos")
    first.train.max_iter = 1
    second.train.update(max_iter=2, init_checkpoint="stage:first")
    second.dataloader.test_datasets = [card]
    keys = {"train": {"output_dir": str(tmp_path)}, "stages": {"first": first, "second": second}}
    source = {"file": "configs/mine.py", "overrides": ["a=1"]}
    cfg = OmegaConf.create({**keys, "source": source}, flags={"allow_objects": True})
    with pytest.raises(ConfigError, match=r"second/model_final\.pth"):
        run(cfg, eval_only=True)
    run(cfg)
    taken.clear()
    run(cfg, eval_only=True)
    ((path, found),) = taken
    assert path == str(tmp_path / "second" / "model_final.pth") and same(found, weights(path))
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert (record["config_file"], record["overrides"], record["stage"]) == ("configs/mine.py", ["a=1"], "second")
