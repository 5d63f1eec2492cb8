"""One training step and one inference of a row per family, through the engine's own run, at toy size by overrides."""

import json

import pytest
from small_rows import COMMON, FAMILIES, FCOS, PRETRAIN

from aligndet.proposal_data import make_proposals
from polydet import model_zoo
from polydet.engine import load_config
from polydet.engine.run import run


def start(row, overrides, output, without=()):
    common = [override for override in COMMON if not override.startswith(tuple(without))]
    cfg = load_config(model_zoo.config_path(row), [*common, *overrides, f"train.output_dir={output}"])
    return run(cfg), [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "Query2Label"])
def test_a_row_trains_and_detects(anywhere, tmp_path, family):
    without = ["dataloader.train.num_workers"] if family == "DetCLIPv2" else []  # each of its sources has its own
    results, records = start(*FAMILIES[family], tmp_path, without)
    losses = [record["total_loss"] for record in records if "total_loss" in record]
    assert len(losses) == 1 and losses[0] > 0
    assert 0 <= results["coco_2017_val"]["bbox"]["AP50"] <= 100
    assert ("segm" in results["coco_2017_val"]) == (family == "Mask R-CNN")
    assert (tmp_path / "model_final.pth").is_file()


def test_the_classifier_of_a_row_trains(anywhere, tmp_path):
    row, overrides = FAMILIES["Query2Label"]
    no_boxes = ("dataloader.test_datasets", "dataloader.test.mapper.augmentations")
    results, records = start(row, overrides, tmp_path, without=no_boxes)
    assert not results and records[0]["total_loss"] > 0


def test_a_pre_training_step_of_a_row_is_what_its_fine_tuning_starts_from(anywhere, tmp_path, monkeypatch):
    make_proposals("coco_2017_train", tmp_path / "proposals" / "coco_2017_train", mode="fast")
    monkeypatch.setenv("POLYDET_PROPOSALS", str(tmp_path / "proposals"))
    no_test = ("dataloader.test_datasets", "dataloader.test.mapper.augmentations")
    results, records = start(*PRETRAIN, tmp_path / "pretrain", without=no_test)
    assert not results and records[0]["total_loss"] > 0
    begin = [f"train.init_checkpoint={tmp_path / 'pretrain' / 'model_final.pth'}"]
    results, _ = start("aligndet/table2_fcos_r50_12k_align", [*FCOS, *begin], tmp_path / "finetune")
    assert "bbox" in results["coco_2017_val"]
    assert "weights from" in (tmp_path / "finetune" / "log.txt").read_text()
