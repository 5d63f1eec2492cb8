import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from aligndet_detectors import scene
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from aligndet import proposal_run
from aligndet.proposal_columns import ProposalColumns
from aligndet.proposal_run import ImageRecord, images_of_folder, images_of_json, run
from aligndet.proposals import ProposalSettings, filter_boxes, propose, selective_search, suppress
from polydet.data import DatasetError

SMALL = ProposalSettings(mode="published", min_side=12)


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(7):
        cv2.imwrite(str(root / f"{i}.png"), scene(i))
    return root


@pytest.mark.parametrize("mode", ["published", "fast", "quality"])
def test_search_finds_a_plain_object_and_repeats_itself(mode):
    image = np.full((96, 128, 3), 60, np.uint8)
    image[30:70, 40:90] = (20, 200, 90)
    boxes = selective_search(image, mode)
    assert np.abs(boxes - [40, 30, 90, 70]).max(1).min() <= 2
    np.testing.assert_array_equal(boxes, selective_search(image, mode))
    np.testing.assert_array_equal(propose(image, SMALL, 3), propose(image, SMALL, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 200)] * 2, *[st.integers(1, 200)] * 2), max_size=30))
def test_filter_is_the_published_one(raw):
    boxes = np.asarray([(x, y, x + w, y + h) for x, y, w, h in raw], np.float32).reshape(-1, 4)
    config = ProposalSettings()
    kept = set(map(tuple, filter_boxes(boxes, 300, 400, config)))
    for x0, y0, x1, y1 in boxes:
        w, h = x1 - x0, y1 - y0
        passes = w >= 32 and h >= 32 and 1 / 3 <= w / h <= 3 and (w * h) ** 0.5 / (300 * 400) ** 0.5 <= 0.8
        edge = abs(w / h - 3) < 1e-5 or abs(h / w - 3) < 1e-5
        assert edge or passes == ((x0, y0, x1, y1) in kept)


def test_suppression_keeps_the_first_of_each_cluster():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 4, 4]])
    np.testing.assert_array_equal(suppress(boxes, 0.5), boxes[[0, 3, 4]])
    assert len(suppress(boxes[:0], 0.5)) == 0


def test_max_side_returns_boxes_in_file_pixels():
    image = np.full((200, 300, 3), 60, np.uint8)
    image[60:140, 100:200] = (20, 200, 90)
    boxes = propose(image, ProposalSettings(max_side=150))
    assert np.abs(boxes - [100, 60, 200, 140]).max(1).min() <= 4


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="mode 'slow'"):
        ProposalSettings(mode="slow")
    with pytest.raises(ValueError, match="uint8"):
        propose(np.zeros((5, 5), np.uint8), SMALL)


def test_run_writes_columns_and_coco(images, tmp_path):
    columns = run(images_of_folder(images), images, tmp_path / "p", SMALL, shard_size=3)
    assert columns.info["images"] == 7 and columns.info["boxes"] == len(columns.boxes) > 0
    again = ProposalColumns.load(tmp_path / "p.columns")
    coco = COCO(str(tmp_path / "p.json"))
    assert [c["name"] for c in coco.dataset["categories"]] == ["selective_search"]
    for i, image_id in enumerate(again.image_ids.tolist()):
        boxes, labels = again.of(i)
        found = np.asarray([a["bbox"] for a in coco.imgToAnns[image_id]]).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        np.testing.assert_allclose(found, boxes, atol=0.01)
        np.testing.assert_array_equal(boxes, propose(cv2.imread(str(images / f"{i}.png")), SMALL, image_id))
        assert (labels == 0).all()


def test_processes_do_not_change_the_result(images, tmp_path):
    one = run(images_of_folder(images), images, tmp_path / "one", SMALL, workers=1, shard_size=2)
    two = run(images_of_folder(images), images, tmp_path / "two", SMALL, workers=2, shard_size=3)
    np.testing.assert_array_equal(one.boxes, two.boxes)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_killed_run_resumes_and_loses_nothing(images, tmp_path, monkeypatch):
    whole = run(images_of_folder(images), images, tmp_path / "whole", SMALL, shard_size=2)
    searched = []

    def dies(image, config, seed):
        if len(searched) == 5:
            raise KeyboardInterrupt
        searched.append(seed)
        return propose(image, config, seed)

    monkeypatch.setattr(proposal_run, "propose", dies)
    with pytest.raises(KeyboardInterrupt):
        run(images_of_folder(images), images, tmp_path / "cut", SMALL, shard_size=2)
    assert not (tmp_path / "cut.columns").exists()
    with pytest.raises(FileNotFoundError, match="resumes"):
        ProposalColumns.load(tmp_path / "cut.columns")
    searched.clear()
    monkeypatch.setattr(proposal_run, "propose", lambda *a: searched.append(a[2]) or propose(*a))
    resumed = run(images_of_folder(images), images, tmp_path / "cut", SMALL, shard_size=2)
    assert searched == [5, 6, 7]  # two shards of two were safe, the third and fourth were not
    np.testing.assert_array_equal(resumed.boxes, whole.boxes)
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_shard_that_cannot_be_written_ends_the_run_at_once(images, tmp_path, monkeypatch):
    records = [ImageRecord(i, f"{i % 7}.png") for i in range(60)]
    plan = proposal_run._plan

    def with_a_file_in_the_way(records, work, *rest):
        (part, path), *others = plan(records, work, *rest)
        return [(part, work / "plan.json" / path.name), *others]

    monkeypatch.setattr(proposal_run, "_plan", with_a_file_in_the_way)
    with pytest.raises(OSError, match=r"cannot write .*shard"):
        run(records, images, tmp_path / "p", SMALL, workers=2, shard_size=1)
    assert len(list((tmp_path / "p.shards").glob("shard-??????.npz"))) < 40


def test_shards_of_another_run_are_refused(images, tmp_path):
    run(images_of_folder(images), images, tmp_path / "p", SMALL)
    with pytest.raises(ValueError, match="settings"):
        run(images_of_folder(images), images, tmp_path / "p", ProposalSettings(mode="fast"))


def test_mapped_columns_survive_being_written_again(images, tmp_path):
    """Proposals may be clustered into their own folder, and searched again while a run trains on them."""
    folder = tmp_path / "p.columns"
    first = run(images_of_folder(images), images, tmp_path / "p", SMALL)
    mapped = ProposalColumns.load(folder)
    replace(mapped, labels=np.ones(len(mapped.boxes), np.uint16)).save(folder)
    np.testing.assert_array_equal(mapped.boxes, first.boxes)
    again = ProposalColumns.load(folder)
    np.testing.assert_array_equal(again.boxes, first.boxes)
    assert (again.labels == 1).all() and not list(folder.glob("*.part"))


def test_unreadable_images_are_listed(images, tmp_path):
    (images / "3.png").write_bytes(b"not a picture")
    records = [*images_of_folder(images), ImageRecord(99, "gone.png")]
    columns = run(records, images, tmp_path / "p", SMALL)
    listed = json.loads((tmp_path / "p.unreadable.json").read_text())
    assert [(r["file_name"], r["image_id"]) for r in listed] == [("3.png", 4), ("gone.png", 99)]
    assert "does not exist" in listed[1]["reason"] and columns.info["unreadable"] == 2 and len(columns) == 6
    for name in os.listdir(images):
        (images / name).write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the 7 images"):
        run(images_of_folder(images), images, tmp_path / "q", SMALL)


def test_json_of_images_needs_no_annotations(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [{"id": 4, "coco_url": "http://x/train2017/000.jpg"}]}))
    assert images_of_json(path) == [ImageRecord(4, "train2017/000.jpg")]
    path.write_text("{}")
    with pytest.raises(ValueError, match="images"):
        images_of_json(path)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
    tool = Path(__file__).parents[2] / "tools" / "selective_search.py"
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name="__main__")
    if stop.value.code:
        raise stop.value


def test_command_samples_a_folder(images, tmp_path, monkeypatch):
    common = ("--root", images, "--workers", 1, "--min-side", 12, "--no-json")
    command(monkeypatch, *common, "--sample", 3, "--output", tmp_path / "few")
    assert len(ProposalColumns.load(tmp_path / "few.columns")) == 3
    with pytest.raises(SystemExit, match="only 7 images"):
        command(monkeypatch, *common, "--sample", 9, "--output", tmp_path / "many")


def test_proposals_of_others_are_read_as_they_lie(images, tmp_path, monkeypatch):
    own = run(images_of_folder(images), images, tmp_path / "own", SMALL)
    document = json.loads((tmp_path / "own.json").read_text())
    document["images"].reverse()  # images in any order; each one's boxes stay in theirs
    spread = document["annotations"][::2] + document["annotations"][1::2]
    bad = [{**spread[0], "bbox": [1.0, 2.0, 0.0, 4.0]}, {**spread[0], "bbox": [1.0, 2.0, float("nan"), 4.0]}]
    (tmp_path / "theirs.json").write_text(json.dumps({**document, "annotations": [*bad, *spread]}))
    command(monkeypatch, "--proposals", tmp_path / "theirs.json", "--output", tmp_path / "read")
    read = ProposalColumns.load(tmp_path / "read.columns")
    assert read.class_names == ("selective_search",) and read.info["dropped"] == 2
    assert read.image_ids.tolist() == own.image_ids.tolist()[::-1]
    assert (read.file_names[0], read.sizes[0].tolist()) == (own.file_names[-1], own.sizes[-1].tolist())
    rows = {a["id"]: a["image_id"] for a in document["annotations"]}
    for i, image_id in enumerate(read.image_ids.tolist()):
        mine = [a["bbox"] for a in spread if rows[a["id"]] == image_id]
        boxes, labels = read.of(i)
        boxes[:, 2:] -= boxes[:, :2]
        np.testing.assert_allclose(boxes, np.reshape(mine, (-1, 4)), atol=0.01)
        assert (labels == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][1].update(image_id=99),
            "image_id 99 is not in",
        ),
        (lambda d: d["annotations"][0].update(category_id=7), "category_id 7"),
        (lambda d: d["images"].append(d["images"][0]), "ids repeat: .1"),
        (lambda d: d["images"][0].update(file_name="../x.png"), "leaves the image folder"),
        (lambda d: d.update(images=[]), "has no images"),
    ],
)
def test_proposals_that_cannot_be_right_are_refused(tmp_path, change, message):
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "selective_search"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]} for i in range(2)],
    }
    change(document)
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=message):
        ProposalColumns.read_coco(tmp_path / "p.json")


@pytest.mark.parametrize("option", [("--sample", 3), ("--json", "a.json")])
def test_options_of_a_folder_are_refused_for_a_card(option, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(monkeypatch, "--dataset", "coco_2017_train", *option, "--output", tmp_path / "p")
    assert "go with --root" in capsys.readouterr().err
