"""Tools on runs that they do not fit: one line, no traceback."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from polydet.data import DatasetCard, card, register_card
from polydet.engine import build_model, load_config
from polydet.engine.command import command
from polydet.engine.config import ConfigError, stage_config
from polydet.engine.summary import write_summary

ROOT = Path(__file__).resolve().parents[2]


def say(tool, *words, monkeypatch):
    """What a tool prints when it refuses."""
    monkeypatch.setattr(sys, "argv", [tool, *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / tool), run_name="__main__")
    return str(stop.value.code)


@pytest.mark.parametrize(
    ("tool", "words", "expected"),
    [
        ("tools/analyze.py", ["quickstart/aligndet"], "name one with --stage: pretrain, finetune"),
        ("tools/analyze.py", ["quickstart/codetr", "--stage", "x"], "the config has no stages"),
        ("tools/evaluate_classification.py", ["quickstart/aligndet"], "has no model of its own but stages"),
        ("tools/evaluate_classification.py", ["quickstart/metr"], "name them with --weights"),
        ("tools/language_aware.py", ["quickstart/codetr", "--words", "a"], "name them with --weights"),
        ("tools/operating_points.py", ["no/such", "--dataset", "x"], "no config, file or run is named 'no/such'"),
        ("tools/oracle_recall.py", ["coco_2017_val.json"], "name a json file, or a card"),
        ("tools/oracle_recall.py", ["coco_2017_vall"], "did you mean one of ['coco_2017_val'"),
        ("tools/oracle_recall.py", ["coco_2017_val"], "are missing"),
        ("tools/replay_step.py", ["."], "is no saved step, it has no info.json, model.pth, batch_rank0.pth"),
        ("tools/tables.py", ["nothing"], "no table 'nothing'"),
        ("tools/selective_search.py", ["--dataset", "coco_2017_val", "--output", "p"], "are missing"),
        ("tools/build_concepts.py", ["--no-definitions", "--output", "c.tsv"], "are missing"),
        (
            "tools/selective_search.py",
            ["--dataset", "cc12m_train", "--output", "p"],
            "the card 'cc12m_train' is of the format 'webdataset'",
        ),
        (
            "tools/build_concepts.py",
            ["--no-definitions", "--grounding", "coco_2017_val", "--output", "c.tsv"],
            "--grounding takes cards of phrases with boxes: the card 'coco_2017_val' is of the format 'coco'",
        ),
        ("detclipv2/pictures.py", ["--run", "detr/dino_4scale_r50", "--card", "x"], "name them with --weights"),
    ],
)
def test_one_line_without_a_traceback(tool, words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert expected in say(tool, *words, monkeypatch=monkeypatch)


def test_a_backbone_without_weights_clusters_nothing(monkeypatch, capsys):
    words = ["--proposals", "p", "--output", "o", "--root", ".", "--weights", "none"]
    assert say("tools/cluster_proposals.py", *words, monkeypatch=monkeypatch) == "2"
    assert "features of a backbone without weights mean nothing" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_the_oracle_takes_json_of_both_forms(form, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(card, "_CARDS", dict(card._CARDS))
    image = {"id": 1, "height": 40, "width": 60}
    more = {"coco_url": "http://x/val/1.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []}
    image |= {"file_name": "1.jpg"} if form == "coco" else more
    boxes = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [i, 1, 9, 9], "area": 81} for i in (1, 2, 3)]
    document = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "a set.json").write_text(json.dumps(document))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "a set.json")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools/oracle_recall.py"), run_name="__main__")
    assert stop.value.code == 0 and "3 objects in 1 images; at most 3 of a category" in capsys.readouterr().out


def test_a_programs_own_mistakes_are_not_hidden():
    with pytest.raises(SystemExit) as stop:
        command(lambda: 3)
    assert stop.value.code == 3
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 / 0)
    with pytest.raises(SystemExit, match="ZeroDivisionError: division by zero"):
        command(lambda: 1 / 0, also=(ZeroDivisionError,))


def test_an_evaluation_keeps_its_own_overrides(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("train = dict(output_dir='x')\ndataloader = dict()\nmodel = optimizer = lr_multiplier = dict()\n")
    trained = load_config(path, ["train.seed=3"])
    from polydet.engine import save_config

    save_config(trained, tmp_path / "config.yaml")
    cfg = load_config(tmp_path / "config.yaml", ["train.init_checkpoint=m.pth", "train.pictures=0"])
    assert list(cfg.source.overrides) == ["train.seed=3", "train.init_checkpoint=m.pth", "train.pictures=0"]
    for evaluation, file in ((False, "run.json"), (True, "run_eval.json")):
        write_summary(cfg, tmp_path / file, 1.0, evaluation)
    train, test = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "run_eval.json"))
    assert train["config_file"] == str(path) and train["overrides"] == list(cfg.source.overrides)
    assert "weights" not in train
    assert test["config_file"] == str(tmp_path / "config.yaml") and test["weights"] == "m.pth"
    assert test["overrides"] == ["train.init_checkpoint=m.pth", "train.pictures=0"]


def test_what_a_part_of_the_model_refuses_is_an_error_of_the_config(monkeypatch):
    cfg = load_config(
        ROOT / "configs/quickstart/scaledet.py",
        ["model.roi_heads.label_loss.federated=sampled", "model.roi_heads.label_loss.hl_scope=own_dataset"],
    )
    monkeypatch.setattr(card, "_CARDS", dict(card._CARDS))
    with pytest.raises(ConfigError, match="needs hl_scope='all'"):
        build_model(cfg)
    with pytest.raises(ConfigError, match="no stage that trains is named 'x'; the config has pretrain, finetune"):
        stage_config(load_config(ROOT / "configs/quickstart/aligndet.py"), "x")


def test_a_missing_value_is_named(tmp_path):
    register_card(DatasetCard("any", "x.json", "x", classes=("a",)), overwrite=True)
    path = tmp_path / "c.py"
    path.write_text("train = dict(output_dir='???')\nmodel = dict(a='???')\ndataloader = optimizer = dict()\n")
    with pytest.raises(ConfigError, match=r"model\.a is \?\?\?.*model\.a=VALUE"):
        load_config(path, ["train.output_dir=x"])
    with pytest.raises(ConfigError, match=r"\?\?\? stands for a value"):
        load_config(path, ["train.output_dir=x", "model.a=???"])
