"""Proposals and folds as datasets of the house."""

import json
from pathlib import Path

import numpy as np
import pytest

from aligndet.low_data import build_low_data_loader, fold_card, fold_report, fold_rows
from aligndet.proposal_data import build_pretrain_loader, make_proposals, proposal_card
from aligndet.views import TwoViewMapper
from polydet.data import DatasetError, DetectionMapper, load_card

SETTINGS = {"min_side": 12, "mode": "published"}


def test_two_view_loader_reads_proposals_and_no_annotation(card, tmp_path):
    columns = make_proposals(card.name, tmp_path / "p", **SETTINGS)
    assert columns.info["images_without_boxes"] >= 1
    mapper = TwoViewMapper(short_edge_lengths=(96,))
    loader = build_pretrain_loader([card.name], str(tmp_path / "p"), mapper, 4, num_workers=0)
    table = load_card(proposal_card(card.name, tmp_path / "p").name)
    by_file = {table.file_name(i): table.record(i) for i in range(len(table))}
    assert loader.images_per_epoch == 12 - columns.info["images_without_boxes"]
    for _, batch in zip(range(3), loader):
        for item in batch:
            boxes = by_file[item["file_name"]]["annotations"]
            assert len(item["instances"]) == len(item["second_boxes"]) == len(boxes) > 0
            assert item["instances"].gt_classes.tolist() == [0] * len(boxes)


def test_loader_repeats_itself(card, tmp_path):
    make_proposals(card.name, tmp_path / "p", **SETTINGS)
    mapper = TwoViewMapper(short_edge_lengths=(64, 96))
    args = ([card.name], str(tmp_path / "p"), mapper, 2)
    first = next(iter(build_pretrain_loader(*args, num_workers=0, start_iter=3)))
    loader = iter(build_pretrain_loader(*args, num_workers=0))
    for _ in range(3):
        next(loader)
    for a, b in zip(first, next(loader)):
        assert a["file_name"] == b["file_name"] and (a["second_image"] == b["second_image"]).all()


def test_missing_proposals_say_how_to_make_them(card, tmp_path):
    with pytest.raises(DatasetError, match=r"selective_search.py --dataset"):
        proposal_card(card.name, tmp_path / "none")
    with pytest.raises(ValueError, match="2 proposal files for the 1 datasets"):
        build_pretrain_loader([card.name], ["a", "b"], TwoViewMapper(), 1)


def test_folds_are_the_published_draw(card):
    np.random.seed(3)
    expected = np.random.choice(range(118287), size=int(1.0 / 100 * 118287), replace=False)
    np.testing.assert_array_equal(fold_rows(118287, 1, 3), expected)
    listed = [image["id"] for image in json.loads(Path(card.json_file).read_text())["images"]]
    for fold in (1, 2):
        name = fold_card(card.name, 50, fold).name
        table = load_card(name)
        assert sorted(table.ids.tolist()) == sorted(listed[i] for i in fold_rows(12, 50, fold))
        assert load_card(name).record(0)["dataset_name"] == name
    assert fold_card(card.name, 100, 4).name == card.name
    with pytest.raises(ValueError, match="no fold"):
        fold_rows(50, 1, 1)
    for percent in (0, -5, 120):
        with pytest.raises(ValueError, match=r"data.percent"):
            fold_card(card.name, percent, 1)


def test_low_data_loader_sees_its_fold_only(card):
    mapper = DetectionMapper(True, [])
    loader = build_low_data_loader([card.name], 25, 2, mapper=mapper, total_batch_size=3, num_workers=0)
    assert loader.images_per_epoch == 3
    seen = {item["image_id"] for _, batch in zip(range(4), loader) for item in batch}
    assert seen == set(load_card(fold_card(card.name, 25, 2).name).ids.tolist())


def test_report_has_mean_and_spread():
    folds = [{"coco_2017_val": {"bbox": {"AP": v, "AP50": None}}} for v in (8.0, 9.0, 10.0)]
    table = fold_report({"fcos 1%": folds})
    assert "9.00 +- 1.00" in table and "coco_2017_val" in table and " 3 " in table
