"""Configs that are data: nothing in them executes."""

import random

import pytest
import yaml
from omegaconf import DictConfig
from torch import nn

from polydet import model_zoo
from polydet.data import DatasetError
from polydet.data.card_files import load_card_file
from polydet.engine import ConfigError, allow_calls, load_config, save_config, trust

PLAIN = {"model": {"_target_": "polydet.layers.SinePositionEncoding", "dim": 8}}


@pytest.fixture
def run_folder(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "model_final.pth").touch()
        return tmp_path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch {proof}']",
        "model: !!python/object/new:os.system ['touch {proof}']",
        "model: {{_target_: os.system, command: 'touch {proof}'}}",
        "model: {{_target_: subprocess.check_output, args: [touch, '{proof}']}}",
        "model: {{_target_: detectron2.config.LazyConfig.load, filename: '{program}'}}",
        "model: {{_target_: detectron2.engine.launch, main_func: os.system, args: ['touch {proof}']}}",
        "model: {{_target_: iopath.common.download.download, url: 'file://{program}', dir: '{folder}'}}",
        "model: {{_target_: torchvision.datasets.utils.download_url, url: 'file://{program}', root: '{folder}'}}",
        "model: {{_target_: polydet.engine.trust.os.system, command: 'touch {proof}'}}",
        "model: {{_target_: polydet.engine.run.run, cfg: {{}}}}",
        'model: {{_target_: builtins.exec, source: \'open("{proof}", "w")\'}}',
        "model: {{_target_: torch.hub.load, repo_or_dir: '{folder}', model: x, source: local}}",
        "model: {{_target_: polydet.engine.image_domain.pretrain_backbone, dataset: x, output: '{proof}'}}",
        # a call that is itself made by a call, hidden in a list, or put together from parts
        "model: {{_target_: {{_target_: operator.attrgetter, attr: system}}, command: 'touch {proof}'}}",
        "model: {{_target_: polydet.detr.DETR, parts: [[{{_target_: os.system, command: 'touch {proof}'}}]]}}",
        "a: os\nmodel: {{_target_: '${{a}}.system', command: 'touch {proof}'}}",
        "model: '${{oc.create:{{_target_: os.system, command: touch {proof}}}}}'",
        "model: '${{oc.decode:\"{{_target_: os.system, command: touch {proof}}}\"}}'",
        "a: oc.create\nmodel: '${{${{a}}:{{_target_: os.system, command: touch {proof}}}}}'",
        "train: {{init: {{key_map: 'os:system'}}}}",
        "stages: {{a: {{train: {{init: {{key_map: 'os:system'}}}}}}}}",
        "train: {{hooks: [{{_target_: os.system, command: 'touch {proof}'}}]}}",
        "train: {{hooks: [{{_target_: detectron2.engine.hooks.EvalHook, eval_period: 1}}]}}",
    ],
)
def test_a_runs_folder_and_a_yaml_config_execute_nothing(run_folder, text):
    proof, program = run_folder("").parent / "proof", run_folder("") / "program.py"
    program.write_text(f"open({str(proof)!r}, 'w')")
    folder = run_folder(text.format(proof=proof, program=program, folder=program.parent))
    for attempt in (model_zoo.get, model_zoo.get_cfg, model_zoo.get_config):
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            attempt(folder)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(folder / "config.yaml", ["train.x=1"])
    assert not proof.exists()


def test_a_component_of_ones_own_can_be_allowed(run_folder, monkeypatch):
    monkeypatch.setattr(trust, "_allowed", set())
    text = "model: {_target_: collections.Counter}\ntrain: {init: {key_map: 'collections:Counter'}}"
    with pytest.raises(ConfigError, match=r"model\._target_ .*allow_calls\('collections\.Counter'\)"):
        model_zoo.get_config(run_folder(text))
    allow_calls("collections.Counter", "collections:Counter")
    assert model_zoo.get_config(run_folder(text)).model._target_ == "collections.Counter"


def test_an_override_is_the_users_own_word(run_folder):
    folder = run_folder(yaml.safe_dump({**PLAIN, "train": {"init": {"key_map": ""}}}))
    assert load_config(folder / "config.yaml", ["train.init.key_map='a:b'"]).train.init.key_map == "a:b"


def test_a_card_from_a_file_asks_for_a_generator_by_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("json_file: a.json\nimage_root: .\ngenerator: os:system\n")
    with pytest.raises(DatasetError, match=r"(?s)no generator is named 'os:system'.*shapeworld"):
        load_card_file(path)
    path.write_text("json_file: a.json\nimage_root: .\ngenerator: shapeworld\n")
    assert load_card_file(path).generator == "shapeworld"


def test_damaged_yaml_is_a_config_error(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(model_zoo.get_config("quickstart/scaledet"), path)
    whole, numbers = path.read_bytes(), random.Random(0)
    found = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(numbers.choice((1, 4, 16))):
            at = numbers.randrange(len(data))
            data[at : at + numbers.randrange(3)] = bytes(numbers.randrange(256) for _ in range(numbers.randrange(3)))
        path.write_bytes(data[: numbers.choice((len(data), numbers.randrange(len(data))))])
        try:
            trust.read_yaml_config(path)
        except ConfigError as error:
            assert str(path) in str(error)
            found += 1
    assert found > 50
    path.write_text("[" * 100000)
    with pytest.raises(ConfigError, match="yaml"):
        trust.read_yaml_config(path)


def test_yaml_with_a_value_that_it_cannot_say_is_for_reading(tmp_path, caplog):
    cfg = DictConfig({"train": {"norm": nn.LayerNorm, "hooks": [len]}}, flags={"allow_objects": True})
    save_config(cfg, tmp_path / "config.yaml")
    assert "train.norm=" in caplog.text and "train.hooks.0=" in caplog.text
    with pytest.raises(ConfigError, match="object of a program"):
        load_config(tmp_path / "config.yaml")
