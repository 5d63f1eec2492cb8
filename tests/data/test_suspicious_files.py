"""Annotation files that look right and are not: box formats, crowds, ids of two types, names, separators."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from polydet.data import DatasetCard, DatasetError, Union, load_card
from polydet.data.convert import yolo_to_coco
from polydet.data.readers import READERS
from polydet.data.readers.box_format import check_box_format

SIZE = np.array([96.0, 64.0])


def objects(count, seed=0):
    """XYWH boxes inside 96 x 64 images."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(10, 30, (count, 2))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (SIZE - sides), sides], axis=1)


def judge(boxes, form="xywh", size=SIZE):
    check_box_format(boxes, np.full(len(boxes), size[0]), np.full(len(boxes), size[1]), "a.json", form)


def corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def centres(boxes):
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("spoil", "likely"),
    [
        (corners, r"read as \[x_min, y_min, x_max, y_max\]"),
        (centres, r"read as \[x_centre, y_centre, width, height\]"),
        (lambda boxes: boxes[:, [1, 0, 3, 2]], "read as the same numbers with y before x"),
        (lambda boxes: boxes / [96, 64, 96, 64], "fractions of the image"),
        (lambda boxes: corners(boxes) / [96, 64, 96, 64], "fractions of the image"),
    ],
)
def test_other_formats_are_named(seed, spoil, likely):
    boxes = objects(60, seed)
    judge(boxes)
    with pytest.raises(DatasetError, match=likely):
        judge(spoil(boxes))


def test_formats_other_than_coco():
    """Where a file should have corners or centres, boxes as x, y, width, height are found too."""
    boxes = objects(60)
    as_corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    as_centres = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    for read, form in ((as_corners, "xyxy"), (as_centres, "cxcywh")):
        with pytest.raises(DatasetError, match=r"read as \[x, y, width, height\]"):
            judge(read, form)
        judge(boxes, form)


def test_careless_boxes_are_kept_and_said(caplog):
    """Boxes that overshoot by a little are common; ones that overshoot by much fit no other format."""
    boxes = objects(60)
    boxes[:30, :2] = 0
    boxes[:30, 2:] = SIZE + 2
    judge(boxes)
    assert not caplog.records
    boxes[:10, :2] = SIZE - 10
    boxes[:10, 2:] = 40
    judge(boxes)
    assert "10 of 60 boxes have no area or reach out of their image" in caplog.text
    judge(objects(2) / 96)  # too few to tell


def spoil(bench, **changes):
    for annotation in bench.document["annotations"]:
        annotation.update(changes)


def test_crowds_are_counted(bench, caplog):
    bench.card()
    assert load_card("toy").crowds == 1
    assert "1 of 3 boxes are crowds" in caplog.text and "CVAT" in caplog.text
    spoil(bench, iscrowd=1)
    bench.card()
    with pytest.raises(DatasetError, match="3 boxes, 3 of them crowds") as error:
        Union(["toy"])
    assert "set iscrowd to 0" in str(error.value) and "filter_empty" not in str(error.value)


def test_ids_of_two_types_are_named(bench):
    for annotation in bench.document["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    bench.card()
    with pytest.raises(DatasetError, match=r"'image_id' is text \('7'\) but 'id' in images a number \(7\)"):
        load_card("toy")
    bench.document["categories"] = [{"id": str(c["id"]), "name": c["name"]} for c in bench.document["categories"]]
    for annotation in bench.document["annotations"]:
        annotation["image_id"] = int(annotation["image_id"])
    bench.card()
    with pytest.raises(DatasetError, match=r"'category_id' is a number \(2\) but 'id' in categories text"):
        load_card("toy")


def test_class_names(bench, caplog):
    names = bench.document["categories"]
    names[0]["name"] = " traffic  cone "
    bench.card()
    assert load_card("toy") and "blanks are taken off" in caplog.text
    names[1]["name"] = "Traffic cone"
    bench.card()
    with pytest.raises(DatasetError, match=r"\[\['Traffic cone', 'traffic cone'\]\] are the same, up to case"):
        load_card("toy")
    bench.card(classes=("Traffic cone", "traffic cone"))
    assert len(load_card("toy")) == 3, "a card that declares such names means them"
    names[1]["name"] = "  "
    bench.card()
    with pytest.raises(DatasetError, match="class names are empty"):
        load_card("toy")


def test_separator_of_windows(bench):
    bench.document["images"][1]["file_name"] = "part\\a.jpg"
    bench.card()
    with pytest.raises(DatasetError, match="separator of Windows") as error:
        load_card("toy")
    assert "images[1] (id 3)" in str(error.value)


def test_yolo_files_with_corners(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    boxes = corners(objects(30)) / [96, 64, 96, 64]
    for k, box in enumerate(boxes):
        Image.new("RGB", (96, 64)).save(tmp_path / "images" / f"{k}.png")
        (tmp_path / "labels" / f"{k}.txt").write_text("0 " + " ".join(map(str, box.tolist())))
    with pytest.raises(DatasetError, match=r"read as \[x_min, y_min, x_max, y_max\]"):
        yolo_to_coco(tmp_path / "images", tmp_path / "labels", ["disc"])


def test_the_whole_file_with_corners(bench):
    bench.document["images"] = [{"id": 1, "file_name": "a.jpg", "width": 96, "height": 64}]
    bench.document["annotations"] = [
        {"id": k, "image_id": 1, "category_id": 5, "bbox": box} for k, box in enumerate(corners(objects(18)).tolist())
    ]
    bench.card(json.dumps(bench.document))
    with pytest.raises(DatasetError, match=r"toy\.json.*boxes have no area or reach out") as error:
        load_card("toy")
    assert "convert them" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"files": {"bbox": [1, 2]}},
        {"spelling": {"a": 1}},
        {"options": {3: 1}},
        {"hierarchy": 5},
        {"evaluator": ["coco"]},
        {"images": "many"},
        {"category_ids": ([1], 2), "classes": ("a", "b")},
    ],
)
def test_card_fields_of_wrong_types(fields):
    with pytest.raises(DatasetError, match=f"card 'x': {next(iter(fields))}"):
        DatasetCard("x", "a.json", "images", **fields)


def test_openimages_ids_are_named_with_their_file_and_line(tmp_path):
    (tmp_path / "boxes.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/1,0.1,0.5,0.1,0.5,0\n")
    (tmp_path / "labels.csv").write_text("ImageID,LabelName,Confidence\na,/m/1,1\n,/m/1,1\n")
    card = DatasetCard(
        "x", str(tmp_path / "boxes.csv"), str(tmp_path), "openimages", ("a",), ("/m/1",),
        files={"labels": str(tmp_path / "labels.csv")},
    )  # fmt: skip
    with pytest.raises(DatasetError, match=r"labels\.csv: file name '' is empty.*\n  at: line 3"):
        READERS["openimages"](card, tmp_path / "boxes.csv", tmp_path)


def test_a_shard_with_a_broken_number_keeps_what_is_before(tmp_path, caplog):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("0.jpg", b"x"), ("0.txt", b"words"), ("1.jpg", b"y"), ("1.txt", b"more")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = bytearray((tmp_path / "s.tar").read_bytes())
    header = bytearray(data[2048:2560])
    header[124:136] = b"\xff" + b"\x7f" * 11  # a size beyond what a file offset holds
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[2048:2560] = header
    (tmp_path / "s.tar").write_bytes(data)
    card = DatasetCard("x", str(tmp_path / "s.tar"), str(tmp_path), "webdataset", ("object",))
    table, _ = READERS["webdataset"](card, tmp_path / "s.tar", tmp_path)
    assert len(table) == 1 and "s.tar: shard breaks off" in caplog.text
