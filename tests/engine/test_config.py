"""Strict configs: what nothing would read is an error that names the nearest key."""

from pathlib import Path

import pytest
import torch

from polydet.engine.config import ConfigError, flatten, load_config, save_config, stage_config
from polydet.engine.output import prepare_output

CONFIG = """
import torch
from detectron2.config import LazyCall as L
from polydet.engine.optim import lr_schedule, param_groups

model = L(torch.nn.Linear)(in_features=4, out_features="${train.pictures}")
dataloader = dict(train=dict(total_batch_size=2), test_datasets=["a", "b"])
optimizer = L(torch.optim.SGD)(params=L(param_groups)(lr="${..lr}", weight_decay=0.0), lr=0.1)
lr_multiplier = L(lr_schedule)(kind="constant")
train = dict(pictures=3, max_iter=10, clip_grad=dict(value=0.5))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def test_overrides_reach_keys_arguments_and_list_items(config):
    overrides = ["train.max_iter=5", "model.bias=False", "dataloader.test_datasets.1=c", "train.clip_grad={kind: norm}"]
    more = ["+model.dtype=float", "~train.max_epochs", "optimizer.lr=2", "+odd=1", "+model.device=${odd}"]
    cfg = load_config(config, [*overrides, *more])
    assert cfg.train.max_iter == 5 and cfg.model.bias is False and cfg.model.dtype == "float" and cfg.model.device == 1
    assert list(cfg.dataloader.test_datasets) == ["a", "c"]
    assert cfg.train.clip_grad == {"kind": "norm", "value": 0.5} and cfg.train.max_epochs == 0
    assert cfg.model.out_features == 3 and cfg.optimizer.params.lr == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=5", "did you mean 'train.max_iter'"),
        ("modle.bias=False", "did you mean 'model.bias'"),
        ("model.biass=False", "did you mean 'model.bias'"),
        ("train.clip_grad={kid: norm}", "did you mean 'train.clip_grad.kind'"),
        ("train.max_iter=many", "is not one"),
        ("train.clip_grad=norm", "group of keys"),
        ("dataloader.test_datasets.7=c", "list of 2 items"),
        ("~train.sead", "did you mean 'train.seed'"),
        ("train.max_iter.x=1", "unknown config key"),
        ("train.max_iter", "cannot parse"),
    ],
)
def test_what_nothing_would_read_is_an_error(config, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(config, [override])


def test_a_config_file_that_passes_an_unknown_argument_is_an_error(config):
    config.write_text(CONFIG + "model.bais = False\n")
    with pytest.raises(ConfigError, match=r"model.bais.*Linear has no argument 'bais'; did you mean 'bias'"):
        load_config(config)
    config.write_text(CONFIG + 'model._target_ = "torch.nn.Linaer"\n')
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_config(config)


def test_a_missing_file_names_the_nearest(config):
    with pytest.raises(ConfigError, match=r"config\.py"):
        load_config(config.with_name("confg.py"))
    with pytest.raises(ConfigError, match="no folder"):
        load_config(config.parent / "absent" / "x.py")


def test_a_saved_config_loads_as_the_same(config, tmp_path):
    cfg = load_config(config, ["train.max_iter=7"])
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    one, two = (
        {k: str(v) for k, v in flatten(c).items() if "_target_" not in k and not k.startswith("source.loaded")}
        for c in (cfg, again)
    )
    assert one == two and again.source.loaded == {"file": str(tmp_path / "config.yaml"), "overrides": []}
    assert sorted(Path(tmp_path).iterdir()) == [config, tmp_path / "config.yaml"]


STAGES = """
from omegaconf import OmegaConf
import torch
from detectron2.config import LazyCall as L

train = dict(output_dir="outer", pictures=8)
shared = dict(width=7)
_model = L(torch.nn.Linear)(in_features="${..train.pictures}", out_features="${train.pictures}")
_loader = dict(names=["${train.pictures}", L(torch.nn.Identity)()])
_first = OmegaConf.create(dict(model=_model, train=dict(pictures=2), dataloader=dict(train=_loader)),
                          flags={"allow_objects": True})
stages = dict(
    first=_first,
    second=dict(model=L(torch.nn.Linear)(in_features="${shared.width}"), train=dict(output_dir="${nowhere.yet}")),
    third=dict(model=dict(width="${....shared.width}")),
    fourth=dict(model=dict(width="${nowhere.yet}", more="${shared.width}"), shared=dict(width=1)),
)
"""


def test_a_stage_resolves_its_own_keys(tmp_path):
    path = tmp_path / "stages.py"
    path.write_text(STAGES)
    cfg = load_config(path, ["stages.first.train.pictures=3"])
    assert cfg.stages.first.model.out_features == 8  # what the tree alone would give
    first = stage_config(cfg, "first")
    assert (first.model.in_features, first.model.out_features, first.dataloader.train.names[0]) == (3, 3, 3)
    first.train.pictures = 4
    assert first.model.out_features == 4 and cfg.stages.first.train.pictures == 3
    first.model._target_ = torch.nn.Bilinear  # objects stay allowed
    first.model._target_ = torch.nn.Linear
    save_config(first, tmp_path / "first.yaml")
    assert load_config(tmp_path / "first.yaml").model.out_features == 4


@pytest.mark.parametrize("name", ["second", "third"])
def test_a_stage_that_reaches_out_is_refused_by_key(tmp_path, name):
    path = tmp_path / "stages.py"
    path.write_text(STAGES)
    key = {"second": r"model\.in_features: \$\{shared\.width\}", "third": r"model\.width: \$\{\.\.\.\.shared\.width\}"}
    with pytest.raises(ConfigError, match=rf"stages\.{name}\.{key[name]} leads out of the stage"):
        stage_config(load_config(path), name)


def test_what_nobody_can_resolve_yet_is_left_as_it_is(tmp_path):
    path = tmp_path / "stages.py"
    path.write_text(STAGES)
    assert stage_config(load_config(path), "fourth").shared.width == 1


@pytest.mark.parametrize(
    ("place", "expected"),
    [("config.py", "./output/config"), ("a/configs/b/c.py", "./output/b/c"), ("configs/configs/d.py", "./output/d")],
)
def test_a_run_has_a_folder_of_its_own(tmp_path, place, expected):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('train = dict(output_dir="./output")')
    assert load_config(path).train.output_dir == expected
    assert load_config(path, ["train.output_dir=mine"]).train.output_dir == "mine"


def test_a_folder_of_another_config_is_not_overwritten(tmp_path):
    configs = [tmp_path / name for name in ("one.py", "two.py")]
    for path in configs:
        path.write_text(f'train = dict(output_dir="{tmp_path}/run")')
    one, two = map(load_config, configs)
    (tmp_path / "run").mkdir()  # the lock of the run makes it
    for _ in range(2):
        folder = prepare_output(one, resume=False, eval_only=False)
        (folder / "last_checkpoint").write_text("model_final.pth")
    for _ in range(2):  # an evaluation by another config does not make the folder that config's
        with pytest.raises(ConfigError, match=r"holds checkpoints of .*one.py.*another train.output_dir"):
            prepare_output(two, resume=False, eval_only=False)
        assert prepare_output(two, resume=False, eval_only=True) == folder
    assert load_config(folder / "config.yaml").source.file == str(configs[0])
    assert load_config(folder / "config_eval.yaml").source.file == str(configs[1])
    prepare_output(load_config(folder / "config.yaml"), resume=False, eval_only=False)
    assert prepare_output(two, resume=True, eval_only=False) == folder


FACTORS = (
    "optimizer = dict(_target_='polydet.engine.optim.param_groups', lr=1.0, weight_decay=0.0, lr_factors={'a': 0.5})"
)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr_factors={bottom_up: 0.1}", {"bottom_up": 0.1}),
        ("optimizer.lr_factors={backbone.bottom_up: 0.1, head: 2}", {"backbone.bottom_up": 0.1, "head": 2}),
        ("optimizer.lr_factors.bottom_up=0.1", {"a": 0.5, "bottom_up": 0.1}),
    ],
)
def test_patterns_of_ones_own_are_set_without_a_plus(override, expected, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(f"{FACTORS}\nmodel = dataloader = lr_multiplier = dict()\ntrain = dict(output_dir='x')\n")
    assert load_config(path, [override]).optimizer.lr_factors == expected
    with pytest.raises(ConfigError, match="lr_factors"):
        load_config(path, ["optimizer.lr_factor={bottom_up: 0.1}"])
