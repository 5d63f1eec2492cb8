"""Your own data: card files, conversions, the two tools."""

import importlib.util
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from polydet.data import DatasetCard, DatasetError, get_card, list_cards, load_card
from polydet.data.card import find_card
from polydet.data.card_files import load_card_file, save_card_file
from polydet.data.convert import voc_to_coco, yolo_class_names, yolo_to_coco
from polydet.data.shapeworld import generate
from polydet.data.shapeworld.real_layout import REAL_NAMES
from polydet.data.shapeworld.voc_wider import write_voc

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path, monkeypatch, bench):
    """An empty datasets folder; cards registered meanwhile are forgotten."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.delenv("POLYDET_CARDS", raising=False)
    return tmp_path


def pictures(folder, names, size=(60, 40)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "gray").save(folder / name)


def write_yolo(root):
    pictures(root / "img", ["a.jpg", "sub/b.png", "empty.jpg"])
    (root / "lab" / "sub").mkdir(parents=True)
    (root / "lab" / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.25 0.25 0.5 0.5\n")
    (root / "lab" / "sub" / "b.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.9\n")
    (root / "data.yaml").write_text("names: [cat, dog]\n")


def test_yolo(root):
    write_yolo(root)
    document = yolo_to_coco(root / "img", root / "lab", yolo_class_names(root / "data.yaml"))
    assert [(i["file_name"], i["width"], i["height"]) for i in document["images"]] == [
        ("a.jpg", 60, 40),
        ("empty.jpg", 60, 40),
        ("sub/b.png", 60, 40),
    ]
    boxes = [(a["image_id"], a["category_id"], np.round(a["bbox"], 6).tolist()) for a in document["annotations"]]
    assert boxes == [(1, 2, [24, 12, 12, 16]), (1, 1, [0, 0, 30, 20]), (3, 1, [6, 4, 24, 32])]
    assert np.allclose(document["annotations"][2]["segmentation"], [[6, 4, 30, 4, 30, 36]])


def test_yolo_labels_of_other_images(root, caplog):
    write_yolo(root)
    (root / "lab" / "classes.txt").write_text("cat\ndog\n")
    (root / "lab" / "lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    yolo_to_coco(root / "img", root / "lab", ["cat", "dog"])
    assert "1 label files have no image (such as lost.txt)" in caplog.text
    with pytest.raises(DatasetError, match="no label file of an image") as error:
        yolo_to_coco(root / "img" / "sub", root / "lab", ["cat", "dog"])
    assert "b.png are looked for at b.txt" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "classes: [on, off]",
        "classes: [1, 2]",
        "classes: forklift",
        "json_file: null",
        "json_file: [1]",
        "image_root: {}",
        "spelling: [a]",
        "options: 3",
    ],
)
def test_card_files_of_wrong_types(root, text):
    (root / "own.yaml").write_text(yaml.safe_dump({"json_file": "a", "image_root": "b", **yaml.safe_load(text)}))
    with pytest.raises(DatasetError, match=text.split(":")[0]) as error:
        load_card_file(root / "own.yaml")
    assert "own.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 is not below 2"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("x 0.5 0.5 0.1 0.1", "not a class and numbers"),
        ("1 0.5 0.5 0.1", "4 fields"),
        ("1 0.5 0.5 0.1 0.1 0.9", "6 fields"),
        ("1 30 20 12 16", "not between 0 and 1"),
        ("1 nan 0.5 0.1 0.1", "not between 0 and 1"),
        ("1 0.5 0,5 0.1 0.1", "not a class and numbers"),
    ],
)
def test_bad_yolo_lines_are_named(root, line, words):
    write_yolo(root)
    (root / "lab" / "a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DatasetError, match=words) as error:
        yolo_to_coco(root / "img", root / "lab", ["cat", "dog"])
    assert "a.txt" in str(error.value) and "line 2" in str(error.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: 3"),
        ("data.yaml", "nc: 2"),
        ("data.yaml", "names: {1: a, 2: b}"),
        ("data.yaml", "names: [a"),
        ("classes.txt", "\n \n"),
        ("data.yaml", b"\xff\xfe\x00"),
    ],
)
def test_bad_class_files(root, file, text):
    (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=file):
        yolo_class_names(root / file)


def test_class_files(root):
    (root / "a.yaml").write_text("names: {0: cat, 1: dog}")
    (root / "b.txt").write_text("cat\n\ndog\n")
    assert yolo_class_names(root / "a.yaml") == yolo_class_names(root / "b.txt") == ["cat", "dog"]


def test_voc(root):
    scenes = generate.scenes_of("voc", 6, generate.colour_weights())
    write_voc(root / "VOC", "all", scenes, REAL_NAMES["voc"], "x")
    document = voc_to_coco(root / "VOC" / "JPEGImages", root / "VOC" / "Annotations")
    assert len(document["images"]) == 6
    assert [c["name"] for c in document["categories"]] == sorted(
        {REAL_NAMES["voc"][shape.kind] for scene in scenes for shape in scene.shapes}
    )
    assert len(document["annotations"]) == sum(len(scene.shapes) for scene in scenes)
    with pytest.raises(DatasetError, match="not named"):
        voc_to_coco(root / "VOC" / "JPEGImages", root / "VOC" / "Annotations", ["bottle"])
    (root / "VOC" / "JPEGImages" / "x000003.jpg").unlink()
    with pytest.raises(DatasetError, match=r"x000003\.xml"):
        voc_to_coco(root / "VOC" / "JPEGImages", root / "VOC" / "Annotations")


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_add_dataset(root, form, capsys):
    write_yolo(root)
    if form == "coco":
        document = yolo_to_coco(root / "img", root / "lab", ["cat", "dog"])
        (root / "ann.json").write_text(json.dumps(document))
        args = ["--annotations", str(root / "ann.json")]
    elif form == "yolo":
        args = ["--format", "yolo", "--annotations", str(root / "lab"), "--classes", str(root / "data.yaml")]
    else:
        (root / "xml").mkdir()
        top = ElementTree.fromstring(
            "<annotation><size><width>60</width><height>40</height></size><object><name>dog</name>"
            "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )
        ElementTree.ElementTree(top).write(root / "xml" / "a.xml")
        args = ["--format", "voc", "--annotations", str(root / "xml")]
    args = ["mine", "--images", str(root / "img"), *args, "--pictures", "2"]
    add = tool("add_dataset")
    assert add.main(args) == 0
    out = capsys.readouterr().out
    assert "dog" in out and "dataloader.train.datasets=[mine]" in out
    picture = Image.open(root / "cards" / "mine.png")
    assert np.asarray(picture).std() > 1
    assert add.main(args) == 1 and "exists already" in capsys.readouterr().err
    assert add.main([*args, "--overwrite"]) == 0

    from polydet.data import card

    del card._CARDS["mine"]  # as in a new process
    data = load_card("mine")
    assert get_card("mine").classes == (("dog",) if form == "voc" else ("cat", "dog"))
    assert data[0]["annotations"] and data[0]["file_name"] == str(root / "img" / "a.jpg")
    if form == "voc":
        assert data[0]["annotations"][0]["bbox"] == [2, 3, 18, 27]


def test_add_dataset_reports_bad_data(root, capsys):
    write_yolo(root)
    (root / "ann.json").write_text('{"images": []}')
    add = tool("add_dataset")
    assert add.main(["mine", "--images", str(root / "img"), "--annotations", str(root / "ann.json")]) == 1
    assert "categories" in capsys.readouterr().err and not (root / "cards" / "mine.yaml").exists()
    yolo = ["mine", "--format", "yolo", "--images", str(root / "img"), "--annotations", str(root / "lab")]
    assert add.main(yolo) == 1 and "--classes" in capsys.readouterr().err


def test_card_files(root):
    card = DatasetCard(
        "mine", "a.json", ("x", "y"), classes=("b", "a"), category_ids=(4, 2), templates="a {} here", options={"k": 1}
    )
    save_card_file(card, root / "cards" / "mine.yaml")
    assert load_card_file(root / "cards" / "mine.yaml") == card == find_card("mine")
    assert "mine" in list_cards()
    with pytest.raises(DatasetError, match="no dataset card"):
        find_card("../mine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("json_file: a.json\nimage_rot: x", "image_rot"),
        ("json_file: a.json", "image_root"),
        ("- a", "mapping"),
        ("a: [", "valid YAML"),
        ("json_file: a\nimage_root: b\nclasses: [a, a]", "twice"),
        ("json_file: a\nimage_root: b\nname: other", "other"),
        ("json_file: a\nimage_root: b\nname: a/b", "letters"),
        ("json_file: a\nimage_root: b\nclasses: 3", "valid card"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_card_files(root, text, words):
    (root / "cards").mkdir()
    (root / "cards" / "broken.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=words) as error:
        find_card("broken")
    assert "broken.yaml" in str(error.value)


def test_check_datasets(root, capsys):
    write_yolo(root)
    document = yolo_to_coco(root / "img", root / "lab", ["cat", "dog"])
    document["annotations"][1]["bbox"] = [0, 0, 0, 5]
    (root / "ann.json").write_text(json.dumps(document))
    content = {"json_file": str(root / "ann.json"), "image_root": str(root / "img")}
    (root / "cards").mkdir()
    (root / "cards" / "mine.yaml").write_text(yaml.safe_dump(content))
    check = tool("check_datasets")
    assert check.main([]) == 0
    out = capsys.readouterr().out
    assert "mine" in out and "1 of 3 boxes cannot be used" in out
    assert check.main(["mine", "--decode"]) == 0 and check.main(["mine", "--images"]) == 0
    data = (root / "img" / "a.jpg").read_bytes()
    (root / "img" / "a.jpg").write_bytes(data[:200])
    (root / "img" / "empty.jpg").unlink()
    Image.new("RGB", (10, 10)).save(root / "img" / "sub" / "b.png")
    capsys.readouterr()
    assert check.main(["mine", "--decode"]) == 1
    out = capsys.readouterr().out
    assert "a.jpg" in out and "empty.jpg" in out and "10x10 but annotated as 60x40" in out
    assert check.main(["mine", "--images"]) == 1
    assert "10x10, annotated as 60x40" in capsys.readouterr().out
    assert check.main(["coco_2017_val"]) == 1
    out = capsys.readouterr().out
    assert "missing:" in out and "cocodataset.org" in out
    content["images"] = 4
    (root / "cards" / "counted.yaml").write_text(yaml.safe_dump(content))
    assert check.main(["counted"]) == 1 and "has 3 images, the whole dataset has 4" in capsys.readouterr().out
    assert check.main(["--list"]) == 0 and "CC BY 4.0" in capsys.readouterr().out
    assert check.main(["odinw13"]) == 1 and "odinw_pothole_val" in capsys.readouterr().out


def test_check_datasets_counts_turned_images(root, capsys):
    """Of a picture turned by 180 degrees, or a square one, no size tells whether its boxes were turned."""
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for k, (turn, size) in enumerate([(1, (60, 40)), (6, (60, 40)), (3, (60, 40)), (6, (40, 40))]):
        tags = Image.Exif()
        tags[0x0112] = turn
        (root / "img").mkdir(exist_ok=True)
        Image.new("RGB", size, "gray").save(root / "img" / f"{k}.jpg", exif=tags)
        width, height = size[::-1] if turn == 6 else size
        document["images"].append({"id": k, "file_name": f"{k}.jpg", "width": width, "height": height})
        document["annotations"].append({"id": k, "image_id": k, "category_id": 1, "bbox": [1, 2, 9, 8]})
    (root / "ann.json").write_text(json.dumps(document))
    (root / "cards").mkdir()
    content = {"json_file": str(root / "ann.json"), "image_root": str(root / "img")}
    (root / "cards" / "mine.yaml").write_text(yaml.safe_dump(content))
    assert tool("check_datasets").main(["mine", "--images"]) == 0
    out = capsys.readouterr().out
    assert "3 images are turned by their EXIF tag" in out and "of 2 of them (such as" in out and "2.jpg" in out


def test_check_datasets_on_nothing(root, capsys):
    assert tool("check_datasets").main([]) == 1
    assert "DETECTRON2_DATASETS" in capsys.readouterr().out
