"""Malformed files of every format: a DatasetError that names the file, or a sound table; never anything else."""

import csv
import io
import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from polydet.data import DatasetError, load_card
from polydet.data.card import DatasetCard
from polydet.data.columns import CROWD
from polydet.data.readers import READERS
from polydet.data.readers.voc import parse_voc_xml

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.sampled_from(["", "a.jpg", "../x", "/etc/passwd", "NaN", "1e999", "é\x00", "[1,2,3,4]"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox", "size"]), inner),
    max_leaves=6,
)


def check_table(data):
    """What must hold for anything that was read without an error."""
    for record in data:
        assert ".." not in record["file_name"].replace("\\", "/").split("/")
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert np.isfinite([x, y, w, h]).all() and w > 0 and h > 0
            assert x < record["width"] and y < record["height"] and x + w > 0 and y + h > 0


def mutate(document, draw):
    """Change, remove or add something somewhere in a json document."""
    section = draw(st.sampled_from(["images", "annotations", "categories", None]))
    if section is None:
        document[draw(st.sampled_from(["images", "annotations", "categories", "info"]))] = draw(values)
        return
    items = document[section]
    item = items[draw(st.integers(0, len(items) - 1))]
    key = draw(st.sampled_from(sorted({*item, "iscrowd", "segmentation", "neg_category_ids"})))
    if draw(st.booleans()):
        item[key] = draw(values)
    else:
        item.pop(key, None)


@SETTINGS
@given(st.data())
@pytest.mark.parametrize("form", ["coco", "lvis", "grounding", "openimages_json"])
def test_json(bench, form, data):
    bench.document = json.loads(json.dumps(DOCUMENT))
    for _ in range(data.draw(st.integers(1, 3))):
        try:
            mutate(bench.document, data.draw)
        except (TypeError, AttributeError, KeyError, ValueError):
            break  # an earlier mutation left nothing to change
    bench.card(format=form)
    try:
        check_table(load_card("toy"))
    except DatasetError as error:
        assert "toy.json" in str(error)


DOCUMENT = {
    "images": [
        {"id": i, "file_name": f"{i}.jpg", "coco_url": f"http://x/val/{i}.jpg", "height": 40, "width": 60,
         "caption": "two dogs", "neg_category_ids": [2], "not_exhaustive_category_ids": []}
        for i in (7, 3)
    ],
    "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": image, "category_id": 5, "bbox": [1, 2, 10, 12], "tokens_positive": [[0, 3]],
         "segmentation": [[1, 2, 9, 9, 1, 9]]}
        for i, image in ((1, 7), (2, 3))
    ],
}  # fmt: skip


@SETTINGS
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_bytes_of_json(bench, seed, changes):
    text = bytearray(json.dumps(DOCUMENT).encode())
    rng = random.Random(seed)
    for _ in range(changes):
        at = rng.randrange(len(text))
        if rng.random() < 0.3:
            del text[at : at + rng.randrange(1, 30)]
        else:
            text[at] = rng.randrange(256)
    bench.card(bytes(text))
    try:
        check_table(load_card("toy"))
    except DatasetError as error:
        assert "toy.json" in str(error)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("0a", "0b"):
        Image.new("RGB", (60, 40)).save(tmp_path / "pictures" / f"{name}.jpg")
    return tmp_path


cells = st.sampled_from(
    ["", "0.1", "0.9", "-0.2", "1.5", "nan", "inf", "1e400", "x", "0a", "../0b", "/m/1", "/m/9", "1", '"']
)
BOX_HEADER = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"]


@SETTINGS
@given(
    st.lists(st.lists(cells, min_size=5, max_size=8), max_size=3),
    st.lists(st.lists(cells, max_size=4), max_size=2),
    st.sampled_from([BOX_HEADER, BOX_HEADER[::-1], BOX_HEADER[:-1], []]),
)
@example([["0a", "/m/1", "0.1", "0.9", "0.1", "0.9", "0"]], [["0a", "/m/1", "1"]], BOX_HEADER)
@example([["0a", "/m/1", "0.9", "0.1", "nan", "0.9", "0"]], [["0b", "/m/9", "1"]], BOX_HEADER)
def test_openimages_csv(images, boxes, labels, header):
    for name, head, rows in (("boxes", header, boxes), ("labels", ["ImageID", "LabelName", "Confidence"], labels)):
        handle = io.StringIO()
        csv.writer(handle).writerows([head, *rows])
        (images / f"{name}.csv").write_text(handle.getvalue())
    card = DatasetCard(
        "toy_oid", str(images / "boxes.csv"), str(images / "pictures"), format="openimages", classes=("a",),
        category_ids=("/m/1",), files={"labels": str(images / "labels.csv")},
    )  # fmt: skip
    try:
        table, _ = READERS["openimages"](card, images / "boxes.csv", images / "pictures")
    except DatasetError as error:
        assert any(word in str(error) for word in ("boxes.csv", "labels.csv", "pictures"))
    else:
        check_table(table)
        assert set(table.labels.tolist()) <= {0}


def test_openimages_quotes_and_encoding(images):
    card = DatasetCard(
        "toy_oid", str(images / "b.csv"), str(images / "pictures"), format="openimages", classes=("a",),
        category_ids=("/m/1",), files={"labels": str(images / "l.csv")},
    )  # fmt: skip
    (images / "l.csv").write_text("ImageID,LabelName,Confidence\n")
    for data in (b"\xff\xfe", b'ImageID,"LabelName\n', b"\x00", b""):
        (images / "b.csv").write_bytes(data)
        with pytest.raises(DatasetError, match=r"b\.csv"):
            READERS["openimages"](card, images / "b.csv", images / "pictures")
    (images / "b.csv").write_text(",".join(BOX_HEADER) + "\n0c,/m/1,0.1,0.5,0.1,0.5,0\n")
    with pytest.raises(DatasetError, match="1 of 1 images are missing"):
        READERS["openimages"](card, images / "b.csv", images / "pictures")


XML = (
    "<annotation><size><width>60</width><height>40</height></size><object><name>cat</name><difficult>0</difficult>"
    "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


@SETTINGS
@given(
    st.sampled_from(["60", "40", "cat", "0", "3", "30", "<bndbox>", "</size>", "xmin", "object"]),
    st.sampled_from(["", "nan", "-5", "1e999", "x", "&lol;", "<object/>", "0", "é", "<name>", "99999999999999999999"]),
)
def test_voc_xml(tmp_path, old, new):
    path = tmp_path / "VOC" / "Annotations" / "0a.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.replace(old, new, 1), encoding="utf-8")
    listing = tmp_path / "VOC" / "ImageSets" / "Main" / "all.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("0a\n")
    card = DatasetCard("toy_voc", str(listing), str(tmp_path), format="voc", classes=("cat",))
    try:
        table, _ = READERS["voc"](card, listing, tmp_path)
    except DatasetError as error:
        assert "0a.xml" in str(error) or "all.txt" in str(error)
    else:
        check_table(table)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "valid xml"),
        (b"\xff\xfe\x00<", "valid xml"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "valid xml"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "entities"),
        (b"<annotation/>", "size/height"),
        (XML.replace("60", "0").encode(), "size is 0x40"),
        (XML.replace("cat", "").encode(), "no name"),
        (XML.replace("<xmax>20</xmax>", "").encode(), "xmax"),
        (None, "cannot be read"),
    ],
)
def test_bad_voc_xml(tmp_path, data, words):
    if data is not None:
        (tmp_path / "a.xml").write_bytes(data)
    with pytest.raises(DatasetError, match=words) as error:
        parse_voc_xml(tmp_path / "a.xml")
    assert "a.xml" in str(error.value)


def face_card(images, text, form="wider_face", **fields):
    (images / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    card = DatasetCard("toy_w", str(images / "list.txt"), str(images), format=form, classes=("face",), **fields)
    return READERS[form](card, images / "list.txt", images / "pictures")[0]


FACES = "0a.jpg\n2\n1 2 10 12 0 0 0 0 0 0 \n4 4 8 8 0 0 0 1 0 0 \n0b.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"


def test_wider_face(images):
    table = face_card(images, FACES)
    assert [len(r["annotations"]) for r in table] == [2, 0]
    assert [a["iscrowd"] for a in table[0]["annotations"]] == [0, 1]
    table = face_card(images, "0a.jpg\n1\n5 5 0 0 0 0 0 0 0 0\n")
    assert table.flags.tolist() == [CROWD], "a face without area is ignored"


@SETTINGS
@given(
    st.integers(0, len(FACES) - 1), st.sampled_from(["", "x", "-9", "\n", "nan ", "../", "1e999 "]), st.integers(0, 9)
)
def test_wider_face_fuzzed(images, at, new, remove):
    try:
        check_table(face_card(images, FACES[:at] + new + FACES[at + remove :]))
    except DatasetError as error:
        assert "list.txt" in str(error) or "pictures" in str(error)


def test_wider_pedestrian(images):
    (images / "ignore.txt").write_text("0a.jpg 0 0 5 5\n")
    table = face_card(
        images, "0a.jpg 1 2 10 12 20 2 5 9\n0b.jpg\n", "wider_pedestrian", files={"ignore": str(images / "ignore.txt")}
    )
    assert table[0]["file_name"].endswith("pictures/0a.jpg")
    assert [a["iscrowd"] for a in table[0]["annotations"]] == [0, 0, 1] and not table[1]["annotations"]
    table = face_card(images, "0a.jpg 1 1 2 10 12\n", "wider_pedestrian", options={"fields": 5})
    assert table[0]["annotations"][0]["bbox"] == [1, 2, 10, 12]
    for text in ("0a.jpg 1 2 3", "0a.jpg 1 2 x 4", "../0a.jpg 1 2 3 4", "0a.jpg 1 2 3 4\n0a.jpg 1 2 3 4", b"\xff\xfe"):
        with pytest.raises(DatasetError, match=r"list\.txt"):
            face_card(images, text, "wider_pedestrian")
    with pytest.raises(DatasetError, match=r"such as gone\.jpg"):
        face_card(images, "gone.jpg 1 2 3 4", "wider_pedestrian")
