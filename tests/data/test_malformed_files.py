"""Malformed csv, xml and text files, each with its error; mutated ones of every format are in ``tests/fuzz``."""

import pytest
from PIL import Image

from polydet.data import DatasetError
from polydet.data.card import DatasetCard
from polydet.data.columns import CROWD
from polydet.data.readers import READERS
from polydet.data.readers.voc import parse_voc_xml


@pytest.fixture
def images(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("0a", "0b"):
        Image.new("RGB", (60, 40)).save(tmp_path / "pictures" / f"{name}.jpg")
    return tmp_path


BOX_HEADER = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"]


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
