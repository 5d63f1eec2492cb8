"""Settings have a name, a type and a meaning in one place; files, stages and overrides obey them alike."""

import builtins
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polydet.engine import ConfigError, load_config, save_config
from polydet.engine.config import flatten
from polydet.engine.lazy import config_root, read_config
from polydet.engine.provenance import origins
from polydet.engine.settings import Train, defaults, write_tables

ROOT = Path(__file__).resolve().parents[2]
BASE = """
from omegaconf import OmegaConf
from polydet.engine.settings import defaults
train = OmegaConf.create(defaults())
dataloader = OmegaConf.create(dict(train=dict(), test_datasets=[]))
"""
STAGE = f"""{BASE}
stages = dict(one=dict(train=train, dataloader=dataloader))
train = dict(output_dir="out")
del dataloader
"""
HOUSE = """
from polydet.configs.common.train import train
from polydet.configs.common.data import dataloader
"""
WRONG = [
    ("train.max_iters", 5, "did you mean 'max_iter'"),
    ("train.clip_grad.kid", '"norm"', "did you mean 'kind'"),
    ("train.emma", "dict(enabled=True)", "did you mean 'ema'"),
    ("train.init.min_covrage", 0.1, r"train\.init\.min_covrage: .*did you mean 'min_coverage'"),
    ("dataloader.test_dataset", '["a"]', "did you mean 'test_datasets'"),
    ("train.max_iter", '"four hundred"', "train.max_iter is a whole number; 'four hundred', of type str"),
    ("train.max_iter", 4.5, "train.max_iter is a whole number; 4.5, of type float"),
    ("train.max_iter", True, "train.max_iter is a whole number; True"),
    ("train.max_epochs", '"two"', "train.max_epochs is a number"),
    ("train.pictures", None, "train.pictures is a whole number; None"),
    ("train.ema.enabled", '"yes please"', "train.ema.enabled is True or False"),
    ("train.output_dir", 7, "train.output_dir is a text"),
    ("train.amp.dtype", '"bf16"', "one of float32, bfloat16, float16, not 'bf16'; did you mean 'bfloat16'"),
    ("train.amp", '"${other}"', "train.amp is a group of keys"),
    ("train.clip_grad", '"norm"', "train.clip_grad is a group of keys .kind, value."),
    ("train.grad_accumulation", 0, "at least 1, not 0"),
    ("train.init.min_coverage", 50, "at least 0 and at most 1, not 50"),
    ("train.init.skip", '"backbone"', "train.init.skip is a list"),
    ("train.init.class_names", "[1]", "train.init.class_names is a list of texts"),
    ("dataloader.test_datasets", '"a"', "dataloader.test_datasets is a list"),
    ("dataloader.train.total_batch_size", '"all"', "dataloader.train.total_batch_size is a whole number"),
    ("dataloader.train.datasets", '"coco"', "dataloader.train.datasets is a list"),
    ("dataloader.train.merge", '"names"', "did you mean 'name'"),
]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "mine.py"

    def write(text):
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_a_wrong_key_or_value_in_a_file_is_an_error(written, key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(written(f"{BASE}\n{key} = {value}\n"))


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_and_in_a_stage(written, key, value, message):
    before, after = STAGE.split("stages =")
    with pytest.raises(ConfigError, match=f"(?s)stages.one.*{message.removeprefix('train.')}"):
        load_config(written(f"{before}{key} = {value}\nstages ={after}"))


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_and_in_an_override(written, key, value, message, plus):
    value = {"None": "null", "dict(enabled=True)": "{enabled: True}"}.get(str(value), str(value))
    with pytest.raises(ConfigError, match=key.split(".")[1]):
        load_config(written(BASE), [f"{plus}{key}={value}"])
    group, name = key.split(".", 1)
    if "." not in name and "is a group" not in message:
        with pytest.raises(ConfigError, match=name):
            load_config(written(BASE), [f"{plus}{group}={{{name}: {value}}}"])


def test_missing_settings_get_their_defaults(written):
    cfg = load_config(written("train = dict(max_iter=5)\ndataloader = dict(test_datasets=['a'])\nmodel = dict()"))
    assert cfg.train.max_iter == 5 and cfg.train.output_dir == "./output/mine"
    assert {k: v for k, v in flatten(cfg.train).items() if k not in ("max_iter", "output_dir")} == {
        k: v for k, v in flatten(OmegaConf.create(defaults(Train))).items() if k not in ("max_iter", "output_dir")
    }
    assert cfg.dataloader.evaluators == {} and cfg.train.hooks == []


def test_settings_stay_typed_in_a_program(written):
    cfg = load_config(written(BASE), ["train.max_epochs=3"])
    assert type(cfg.train.max_epochs) is float
    for key, value in (("max_iter", "many"), ("emma", 1)):
        with pytest.raises(OmegaConfBaseException, match=key):
            cfg.train[key] = value


def test_interpolations_and_hooks_pass(written, tmp_path):
    text = f"{BASE}\ntrain.max_iter = '${{.eval_period}}'\ntrain.eval_period = 7\n"
    text += "train.amp.dtype = '${other.dtype}'\n"
    text += "from polydet.engine.plateau import PlateauSchedule as P\nfrom detectron2.config import LazyCall as L\n"
    text += "other = dict(dtype='bfloat16')\ntrain.hooks = [L(P)(metric='${train.output_dir}')]\n"
    cfg = load_config(written(text))
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert (again.train.max_iter, again.train.amp.dtype, again.train.hooks[0].metric) == (
        7,
        "bfloat16",
        "./output/mine",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian = dict(max_iter=5)", "unknown config key 'trian'; did you mean 'train'"),
        ("helper = dict(a=1)", "'helper' is no key of a config .*helper variable begins with an underscore: _helper"),
        ("for wide in [dict(a=1)]: pass", "'wide' is no key"),
        ("from polydet.configs.common.data import dataloader as dataloaders", "did you mean 'dataloader'"),
    ],
)
def test_top_level_names_that_nothing_reads(written, line, message):
    with pytest.raises(ConfigError, match=message):
        load_config(written(f"{BASE}\n{line}\n"))


def test_helpers_are_no_keys(written):
    lines = "_mine = dict(a=1)\nfrom polydet.configs.common.data import lsj, detr\nread = dict(it=3)\n"
    cfg = load_config(written(f"{BASE}\n{lines}\ntrain.pictures = '${{read.it}}'"))
    assert set(cfg) == {"train", "dataloader", "read", "source"} and cfg.train.pictures == 3


@pytest.mark.parametrize("override", ["+trian.max_iter=5", "++modle={}", "+stages.one.trian={}"])
def test_top_level_names_in_overrides(written, override):
    with pytest.raises(ConfigError, match="did you mean"):
        load_config(written(STAGE), [override])


def test_parts_of_the_house_are_read_anew(written):
    path = written(f"{HOUSE}\ntrain.max_iter = 1\ndataloader.train.datasets = ['mine']\n")
    assert load_config(path).train.max_iter == 1
    assert read_config(config_root() / "common" / "train.py").train.max_iter == defaults()["max_iter"]
    found = origins(path)
    assert found["train.max_iter"][1] == path
    assert found["train.seed"][1] == config_root() / "common" / "train.py"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from polydet.configs.common.trian import train", "no config 'common/trian'.*did you mean 'common/train'"),
        ("import polydet.configs.common.train", "from polydet.configs.common.train import train"),
    ],
)
def test_imports_that_cannot_be(written, line, message):
    before = builtins.__import__
    with pytest.raises(ImportError, match=message):
        load_config(written(line))
    assert builtins.__import__ is before


def test_a_row_from_an_empty_folder_and_from_a_wheel(tmp_path):
    """A wheel has the configs at polydet/_configs, and no folder ``configs`` beside the package."""
    site = tmp_path / "site"
    packages = ("polydet", "scaledet")
    for name in packages:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", site / "polydet" / "_configs")
    work = tmp_path / "empty"
    work.mkdir()
    (work / "mine.py").write_text(
        "from polydet.configs.scaledet_swinb import dataloader, lr_multiplier, model, optimizer, train\n"
        "train.max_iter = 3\n"
    )
    code = "import polydet; from polydet.engine import load_config; c = load_config('mine.py'); "
    code += "print(polydet.__file__, c.train.max_iter, c.train.output_dir, 'backbone' in c.model)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    file, *rest = done.stdout.split()
    assert Path(file).is_relative_to(site) and rest[0] == "3" and rest[2] == "True"


def test_the_tables_of_the_documentation_are_the_settings():
    page = ROOT / "docs" / "training.md"
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- settings: ") == 3
    assert write_tables(text) == text, "python -m polydet.engine.settings docs/training.md"
