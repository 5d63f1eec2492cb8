"""Cards, catalogs, and the COCO and LVIS readers on good and bad files."""

import json
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from polydet.data import DatasetCard, DatasetError, get_card, list_cards, load_card, prepare_cards, register_card
from polydet.data.card import find_card


def test_a_good_file(bench):
    bench.card()
    data = load_card("toy")
    assert get_card("toy").classes == ("dog", "cat") and get_card("toy").category_ids == (2, 5)
    assert [record["image_id"] for record in data] == [3, 7, 9]
    assert data[0] == {
        "file_name": str(bench.root / "images" / "a.jpg"),
        "image_id": 3,
        "height": 50,
        "width": 30,
        "dataset_name": "toy",
        "annotations": [{"bbox": [0.5, 0.25, 4, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}],
    }
    assert [a["category_id"] for a in data[1]["annotations"]] == [1, 0]
    assert data[1]["annotations"][1]["iscrowd"] == 1
    assert data[2]["annotations"] == [] == data[-1]["annotations"]
    assert data.usable_images().tolist() == [True, True, False]
    assert len(data[:2]) == 2
    with pytest.raises(IndexError):
        data[3]
    assert load_card("toy") is data, "read once"


def test_detectron2_sees_the_card(bench):
    bench.card(evaluator="coco")
    assert list(DatasetCatalog.get("toy")) == list(load_card("toy"))
    meta = MetadataCatalog.get("toy")
    assert meta.thing_classes == ["dog", "cat"]
    assert meta.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1}
    assert meta.json_file == str(bench.root / "toy.json") and meta.evaluator_type == "coco"


def test_same_records_as_detectron2(bench):
    from detectron2.data.datasets.coco import load_coco_json

    bench.document["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 14.5]]
    bench.card()
    theirs = load_coco_json(str(bench.root / "toy.json"), str(bench.root / "images"), "toy")
    for ours, other in zip(load_card("toy"), theirs, strict=True):
        assert ours.pop("dataset_name") == "toy"
        assert ours == other


def test_edited_file_is_read_again(bench):
    bench.card()
    assert len(load_card("toy")) == 3
    bench.document["images"].append({"id": 11, "file_name": "d.jpg", "height": 5, "width": 5})
    bench.card()
    assert len(load_card("toy")) == 4


def test_builtin_cards_know_their_classes_without_files():
    for name in list_cards():
        assert find_card(name).classes, name
    assert len(get_card("coco_2017_val").classes) == 80
    assert len(get_card("lvis_v1_train").classes) == 1203
    assert "bull" in get_card("lvis_v1_train").classes


def test_bigdetection_matches_classes_by_name(bench):
    card = find_card("bigdetection_openimages_train")
    assert len(card.classes) == 600 and card.classes[0] == "accordion" and card.classes[-1] == "zucchini"
    for category, name in zip(bench.document["categories"], ("zucchini", "bus_(vehicle)")):
        category["name"] = name
    del bench.document["categories"][2:]
    first, second = (category["id"] for category in bench.document["categories"])
    for number, annotation in enumerate(bench.document["annotations"]):
        annotation["category_id"] = first if number == 0 else second
    bench.card(classes=card.classes)
    found = {a["category_id"] for record in load_card("toy") for a in record["annotations"]}
    assert found == {599, card.classes.index("bus_(vehicle)")}


def test_missing_files_are_one_list(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError) as error:
        prepare_cards(["coco_2017_train", "lvis_v1_train"])
    for file in ("instances_train2017.json", "coco/train2017", "lvis/lvis_v1_train.json", "DETECTRON2_DATASETS"):
        assert file in str(error.value)


def test_unknown_card_names_near_ones():
    with pytest.raises(DatasetError, match="coco_2017_train"):
        get_card("coco_2017_trian")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("a", "a")}, "twice"),
        ({"classes": ()}, "no classes"),
        ({"classes": ("a",), "category_ids": (1, 2)}, "category_ids"),
        ({"templates": ("no slot",)}, "exactly one"),
        ({"label_policy": "none"}, "label_policy"),
    ],
)
def test_contradictory_cards(fields, message):
    with pytest.raises(DatasetError, match=message):
        DatasetCard(name="x", json_file="x.json", image_root="x", **fields)


def test_name_taken(bench):
    bench.card()
    with pytest.raises(DatasetError, match="exists already"):
        register_card(DatasetCard(name="toy", json_file="other.json", image_root="x"))


def edit(section, index, **changes):
    def apply(document):
        entry = document[section][index]
        for key, value in changes.items():
            if value is ...:
                del entry[key]
            else:
                entry[key] = value

    return apply


ERRORS = {
    "missing image file name": (edit("images", 1, file_name=...), ["file_name", "images[1]", "id 3"]),
    "missing height": (edit("images", 0, height=...), ["height", "id 7"]),
    "zero width": (edit("images", 0, width=0), ["width", "id 7"]),
    "huge width": (edit("images", 0, width=10**30), ["width", "id 7"]),
    "fractional height": (edit("images", 0, height=4.5), ["height", "4.5"]),
    "duplicate image id": (edit("images", 0, id=3), ["image ids occur more than once", "3"]),
    "text image id": (edit("images", 0, id="seven"), ["id", "seven"]),
    "duplicate annotation id": (edit("annotations", 0, id=2), ["annotation ids occur more than once"]),
    "duplicate category id": (edit("categories", 0, id=2), ["category ids occur more than once"]),
    "same name twice": (edit("categories", 0, name="dog"), ["dog"]),
    "category without name": (edit("categories", 0, name=...), ["name", "id 5"]),
    "undeclared category": (edit("annotations", 2, category_id=99), ["99", "not declared", "annotation id 3"]),
    "unknown image": (edit("annotations", 1, image_id=55), ["55", "annotation id 2"]),
    "no bbox": (edit("annotations", 1, bbox=...), ["bbox", "id 2"]),
    "three numbers": (edit("annotations", 1, bbox=[1, 2, 3]), ["bbox", "four numbers", "id 2"]),
    "text in box": (edit("annotations", 1, bbox=[1, 2, "3", 4]), ["bbox", "id 2"]),
    "null box": (edit("annotations", 1, bbox=None), ["bbox", "id 2"]),
    "no annotations": (lambda d: d.pop("annotations"), ["annotations"]),
    "no categories": (lambda d: d.pop("categories"), ["categories"]),
    "images is an object": (lambda d: d.update(images={}), ["images", "not a list"]),
    "image is a number": (lambda d: d["images"].append(4), ["images[3]"]),
    "absolute file name": (edit("images", 0, file_name="/etc/passwd"), ["/etc/passwd", "id 7"]),
    "climbing file name": (edit("images", 0, file_name="x/../../y.jpg"), ["leaves the image folder", "id 7"]),
    "climbing with backslashes": (edit("images", 0, file_name="..\\y.jpg"), ["leaves the image folder"]),
    "empty file name": (edit("images", 0, file_name=""), ["empty"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_content_names_the_culprit(bench, case):
    change, words = ERRORS[case]
    change(bench.document)
    bench.card()
    with pytest.raises(DatasetError) as error:
        load_card("toy")
    for word in ["toy.json", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', ["not valid json", "line 1"]),
        ("", ["not valid json"]),
        (b"\xff\xfe{\x00}\x00", ["UTF-8"]),
        ("[]", ["list"]),
        ("[" * 5000, ["not valid json"]),
    ],
)
def test_broken_json(bench, text, words):
    bench.card(text)
    with pytest.raises(DatasetError) as error:
        load_card("toy")
    for word in ["toy.json", *words]:
        assert word in str(error.value)


BAD_BOXES = {
    "NaN": [math.nan, 1, 2, 2],
    "infinite": [1, 1, math.inf, 2],
    "huge": [1, 1, 10**400, 2],
    "large": [1, 1, 1e12, 2],
    "zero width": [1, 1, 0, 2],
    "negative height": [1, 1, 3, -2],
    "right of the image": [61, 1, 3, 3],
    "above the image": [5, -9, 3, 9],
}


@pytest.mark.parametrize("case", BAD_BOXES)
def test_bad_boxes_are_counted_and_dropped(bench, case, caplog):
    bench.document["annotations"][0]["bbox"] = BAD_BOXES[case]
    bench.card()
    data = load_card("toy")
    assert [a["category_id"] for a in data[1]["annotations"]] == [0], "the other box of that image stays"
    assert "1 of 3 boxes" in caplog.text and "annotation id 1" in caplog.text and "toy.json" in caplog.text


def test_wrong_box_format_is_an_error(bench):
    for i in range(20):
        bench.document["annotations"].append({"id": 100 + i, "image_id": 9, "category_id": 5, "bbox": [15, 15, -2, -3]})
    bench.card()
    with pytest.raises(DatasetError, match="x, y, width, height"):
        load_card("toy")


def test_box_that_sticks_out_stays(bench):
    bench.document["annotations"][0]["bbox"] = [-5, -5, 500, 500]
    bench.card()
    assert load_card("toy")[1]["annotations"][0]["bbox"] == [-5, -5, 500, 500]


def test_bad_masks_keep_their_box(bench, caplog):
    bench.document["annotations"][0]["segmentation"] = [[1, 2, 3]]
    bench.document["annotations"][1]["segmentation"] = [[0, 0, 4, 0, 4, 4], [1, 1]]
    bench.card()
    data = load_card("toy")
    assert "segmentation" not in data[1]["annotations"][0] and "annotation id [1]" in caplog.text
    assert data[0]["annotations"][0]["segmentation"] == [[0, 0, 4, 0, 4, 4]]


def test_string_ids(bench):
    for image, new in zip(bench.document["images"], ("x", "y", "z")):
        for annotation in bench.document["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"] = new
        image["id"] = new
    bench.card()
    assert [(r["image_id"], len(r["annotations"])) for r in load_card("toy")] == [("x", 2), ("y", 1), ("z", 0)]


def test_file_must_agree_with_the_card(bench):
    bench.card(classes=("cat", "Dog "), category_ids=(5, 2))
    assert [a["category_id"] for a in load_card("toy")[1]["annotations"]] == [0, 1]
    bench.card(classes=("cat", "dog"), category_ids=(2, 5))
    with pytest.raises(DatasetError, match="'cat' here but"):
        load_card("toy")
    bench.card(classes=("cat", "bird"))
    with pytest.raises(DatasetError, match="'dog' here but not a class"):
        load_card("toy")
    bench.card(classes=("cat", "hound"), spelling={"dog": "hound"})
    assert [a["category_id"] for a in load_card("toy")[1]["annotations"]] == [0, 1]


def lvis_document():
    return {
        "images": [
            {
                "id": 4,
                "coco_url": "http://images.cocodataset.org/val2017/000000000004.jpg",
                "height": 20,
                "width": 20,
                "neg_category_ids": [3],
                "not_exhaustive_category_ids": [1],
            }
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(["a", "b", "c"], 1)],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 1, 3, 3]},
            {"id": 2, "image_id": 4, "category_id": 1, "bbox": [2, 1, 3, 3]},
            {"id": 3, "image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 3]},
        ],
    }


def test_lvis(bench):
    bench.document = lvis_document()
    bench.card(format="lvis", label_policy="federated", evaluator="lvis")
    record = load_card("toy")[0]
    assert record["file_name"].endswith("images/val2017/000000000004.jpg")
    assert record["pos_category_ids"] == [0, 1]
    assert record["neg_category_ids"] == [2] and record["not_exhaustive_category_ids"] == [0]


@pytest.mark.parametrize("bad", [[17], "ab", [None], 5])
def test_lvis_negatives_must_be_declared(bench, bad):
    bench.document = lvis_document()
    bench.document["images"][0]["neg_category_ids"] = bad
    bench.card(format="lvis")
    with pytest.raises(DatasetError, match="neg_category_ids"):
        load_card("toy")


def test_several_files_make_one_card(bench):
    bench.card()
    second = json.loads((bench.root / "toy.json").read_text())
    for image in second["images"]:
        image["id"] += 100
    for annotation in second["annotations"]:
        annotation["image_id"] += 100
    (bench.root / "more").mkdir()
    (bench.root / "more.json").write_text(json.dumps(second))
    files = (str(bench.root / "toy.json"), str(bench.root / "more.json"))
    roots = (str(bench.root / "images"), str(bench.root / "more"))
    bench.card(name="both", json_file=files, image_root=roots)
    data = load_card("both")
    assert [r["image_id"] for r in data] == [3, 7, 9, 103, 107, 109]
    assert data[4]["file_name"] == str(bench.root / "more" / "b.jpg")
    assert data[4]["annotations"] == data[1]["annotations"]


def test_images_of_another_card_left_out(bench):
    other = {**bench.document, "images": [{**bench.document["images"][1]}], "annotations": []}
    bench.card(name="other", text=json.dumps(other))
    bench.card(options={"exclude_images_of": "other"}, json_file=str(bench.root / "again.json"))
    (bench.root / "again.json").write_text(json.dumps(bench.document))
    (bench.root / "toy.json").write_text(json.dumps(other))
    assert [r["image_id"] for r in load_card("toy")] == [7, 9], "3 is in the other card"
    (bench.root / "toy.json").unlink()
    with pytest.raises(DatasetError, match=r"toy\.json"):
        prepare_cards(["toy"])


def test_names_that_differ_in_case_or_punctuation_only(bench):
    bench.document["categories"] = [{"id": 5, "name": "c"}, {"id": 2, "name": "c++"}]
    bench.card(classes=("C", "c++", "c", "dog"))
    assert [a["category_id"] for a in load_card("toy")[1]["annotations"]] == [2, 1]
    bench.document["categories"] = [{"id": 5, "name": "Dog!"}, {"id": 2, "name": "C++"}]
    bench.card(classes=("C", "c++", "c", "dog"))
    with pytest.raises(DatasetError, match=r"'C\+\+' here but not a class"):
        load_card("toy")


def test_own_lvis_file_without_urls(bench):
    bench.card(format="lvis")
    assert load_card("toy")[0]["file_name"].endswith("images/a.jpg")
    bench.document["images"][0]["coco_url"] = "http://x/val/b.jpg"
    bench.card(format="lvis")
    with pytest.raises(DatasetError, match="coco_url"):
        load_card("toy")
