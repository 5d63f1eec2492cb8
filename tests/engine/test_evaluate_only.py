"""Which weights ``--eval-only`` takes: those of the run, or the ones that are named, never where the run started."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_exact_resume import card, small  # noqa: F401

from polydet.engine import CheckpointError, ConfigError, load_config, run, save_config, trust
from polydet.engine.weights import is_named, own_weights, use_weights, weights_in

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


def test_the_runs_own_weights_unless_others_are_named(small, card, taken, tool, tmp_path, monkeypatch):  # noqa: F811
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
    with pytest.raises(ConfigError, match="key_map"):  # a file names no code of its own
        tool.main(tool.parse_args(arguments))
    monkeypatch.setattr(trust, "_allowed", {f"{__name__}:renamed"})
    tool.main(tool.parse_args(arguments))
    tool.main(tool.parse_args([*arguments, f"train.init_checkpoint={out / 'model_0000001.pth'}"]))
    plain = ["train.init.key_map=''", "train.init.class_names=[]", "train.init.skip=[]"]
    tool.main(tool.parse_args([*arguments, f"train.init_checkpoint={start}", *plain]))
    tool.main(tool.parse_args([*arguments, f"++train.init_checkpoint={start}", *plain]))
    run(load_config(tmp_path / "mine.yaml", [f"train={{init_checkpoint:{start}}}", *plain]), eval_only=True)
    (out / "model_final.pth").unlink()
    run(load_config(tmp_path / "mine.yaml"), eval_only=True)
    files = [out / "model_final.pth", out / "model_0000001.pth", start, start, start, out / "model_0000001.pth"]
    (out / "model_final.pth").write_bytes((out / "model_0000001.pth").read_bytes())  # the same step
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


CONFIG = """
train = dict(output_dir="{folder}", init_checkpoint="start.pth")
train["init"] = dict(key_map="metr.transfer:to_dino", class_names=["a"], skip=["c"])
stages = dict(
    first=dict(train=dict(output_dir="", init_checkpoint="")),
    second=dict(train=dict(output_dir="", init_checkpoint="stage:first")),
)
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine.py").write_text(CONFIG.format(folder=tmp_path / "run"))
    return lambda *overrides: load_config(tmp_path / "mine.py", overrides)


@pytest.mark.parametrize(
    "override",
    [
        "train.init_checkpoint=named.pth",
        "+train.init_checkpoint=named.pth",
        "++train.init_checkpoint=named.pth",
        "train={init_checkpoint:named.pth}",
        "++train={init_checkpoint:named.pth}",
    ],
)
def test_what_an_override_names_however_it_does(mine, tmp_path, override):
    torch.save({}, tmp_path / "run" / "model_final.pth")
    assert own_weights(mine(override)) == Path("named.pth")
    assert own_weights(mine("train.init.key_map=a:c")) == tmp_path / "run" / "model_final.pth"
    assert own_weights(mine(override), explicit=False) == tmp_path / "run" / "model_final.pth"


def test_naming_what_the_file_says_is_naming(mine, tmp_path):
    torch.save({}, tmp_path / "run" / "model_final.pth")
    assert own_weights(mine("train.init_checkpoint=start.pth")) == Path("start.pth")
    cfg = mine()
    assert not is_named(cfg)
    cfg.train.init_checkpoint = "set.pth"
    assert own_weights(cfg) == Path("set.pth")
    cfg.train.init_checkpoint = ""
    assert own_weights(cfg) == tmp_path / "run" / "model_final.pth"


def test_a_saved_config_forgets_what_was_named(mine, tmp_path):
    torch.save({}, tmp_path / "run" / "model_final.pth")
    save_config(mine("train.init_checkpoint=named.pth"), tmp_path / "config.yaml")
    cfg = load_config(tmp_path / "config.yaml", ["train.init.key_map=a:c"])
    assert own_weights(cfg) == tmp_path / "run" / "model_final.pth"
    assert cfg.source.file == str(tmp_path / "mine.py") and len(cfg.source.overrides) == 2


def test_the_order_final_newest_whole_start(mine, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    assert weights_in(folder) is None and own_weights(mine()) == Path("start.pth")
    assert "holds no checkpoint" in caplog.text
    for name in ("model_0000009", "model_0000020", "model_best"):
        torch.save({}, folder / f"{name}.pth")
    torn = (folder / "model_best.pth").read_bytes()[:-40]
    (folder / "model_0000100.pth").write_bytes(torn)
    (folder / ".model_0000200.pth.1.tmp").write_bytes(torn)
    assert own_weights(mine()) == folder / "model_0000020.pth"
    assert "not finished, its newest checkpoint is" in caplog.text and "not what the run started from" in caplog.text
    torch.save({}, folder / "model_final.pth")
    assert own_weights(mine()) == folder / "model_final.pth"
    assert own_weights(mine(), best=True) == folder / "model_best.pth"
    (folder / "model_best.pth").unlink()
    with pytest.raises(CheckpointError, match=r"train\.best_metric"):
        weights_in(folder, best=True)


def test_the_runs_own_weights_are_neither_renamed_nor_skipped(mine, tmp_path):
    for path, kept in ((tmp_path / "run" / "model_final.pth", False), (tmp_path / "other.pth", True)):
        cfg = mine()
        use_weights(cfg, path)
        assert cfg.train.init_checkpoint == str(path)
        assert bool(cfg.train.init.key_map) == bool(cfg.train.init.class_names) == bool(cfg.train.init.skip) == kept


def test_a_stage_takes_what_is_named_for_it(mine):
    cfg = mine("stages.first.train.init_checkpoint=named.pth")
    assert dict(cfg.source.stage_starts) == {"second": "stage:first"}


def test_weights_that_are_nan_are_not_evaluated(small, card, tmp_path):  # noqa: F811
    cfg = small("fcos")
    cfg.train.update(output_dir=str(tmp_path), max_iter=1)
    run(cfg)
    file = tmp_path / "model_final.pth"
    state = torch.load(file, weights_only=True)
    name = next(key for key in state["model"] if key.endswith("conv1.weight"))
    state["model"][name].view(-1)[3] = float("nan")
    torch.save(state, file)
    cfg.dataloader.test_datasets = [card]
    with pytest.raises(
        CheckpointError, match=rf"model_final\.pth does not fit the model: {name} has values that are NaN"
    ):
        run(cfg, eval_only=True)
    assert not (tmp_path / "results.json").exists()
