"""ShapeWorld in every real layout, through every real card."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from polydet.data import DetectionMapper, build_train_loader, get_card, label_space_of, load_card
from polydet.data.augmentations import large_scale_jitter
from polydet.data.builtin.objects365 import OBJECTS365_V2_SPELLING
from polydet.data.builtin.odinw import ODINW13
from polydet.data.hierarchy import ancestor_matrix
from polydet.data.shapeworld.real_layout import MARKER, REAL_NAMES, write_real_layout

CARDS = {
    "coco": ["coco_2017_train", "coco_2017_val"],
    "lvis": ["lvis_v1_train", "lvis_v1_val"],
    "objects365": ["objects365_v2_train", "objects365_v2_val"],
    "openimages": ["openimages_v6_train", "openimages_v6_val"],
    "voc": ["voc_2007_trainval", "voc_2007_test", "voc_0712_trainval"],
    "wider_face": ["wider_face_train", "wider_face_val"],
    "wider_pedestrian": ["wider_pedestrian_train", "wider_pedestrian_val"],
}
SETS = [f"odinw_{name}_{split}" for name in ODINW13 for split in ("train", "val", "test")]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    write_real_layout(root, train=24, val=8)
    yield root
    patch.undo()


@pytest.mark.parametrize("name", [name for names in CARDS.values() for name in names])
def test_every_card_reads_its_layout(real, name):
    dataset = next(key for key, names in CARDS.items() if name in names)
    data, card = load_card(name), get_card(name)
    assert len(data) == {"val": 8, "test": 8}.get(name.rsplit("_", 1)[1], 48 if "0712" in name else 24)
    wanted = set(REAL_NAMES.get(dataset, {"": card.classes[0]}).values())
    found = {card.classes[a["category_id"]] for record in data for a in record["annotations"]}
    assert found and found <= wanted | {"Food", "Toy"}
    for record in data:
        out = DetectionMapper(True, [])(record)
        assert out["image"].shape == (3, record["height"], record["width"]) == (3, 160, 192)


def test_downstream_and_text_cards_read_theirs(real):
    for name in SETS:
        data, card = load_card(name), get_card(name)
        assert len(data) == 8 and len(data.labels) and data.crowds == 0, name
        assert set(data.labels.tolist()) <= set(range(len(card.classes)))
        assert DetectionMapper(True, [])(data[0])["image"].shape == (3, 160, 192)
    for name in ("goldg_flickr_train", "goldg_gqa_train"):
        data = load_card(name)
        assert len(data) == 12 and all(a["phrase"] in r["caption"] for r in data for a in r["annotations"])
    for name in ("cc3m_train", "cc12m_train"):
        data = load_card(name)
        assert len(data) == 12 and all(r["caption"] for r in data)
        assert DetectionMapper(True, [])(data[3])["image"].shape == (3, 160, 192)
    assert [r["file_name"] for r in load_card("lvis_v1_minival")] == [r["file_name"] for r in load_card("lvis_v1_val")]


def test_the_check_takes_the_small_layout_for_what_it_is(real, capsys):
    path = Path(__file__).parents[2] / "tools" / "check_datasets.py"
    spec = importlib.util.spec_from_file_location("check_datasets", path)
    tool = importlib.util.module_from_spec(spec)
    sys.modules["check_datasets"] = tool  # dataclasses look their module up
    spec.loader.exec_module(tool)
    assert tool.main(["coco_2017_train", "lvis_v1_minival", "odinw_Raccoon_val", "cc3m_train"]) == 0
    assert "24 images, the whole dataset has 118,287: made-up pictures" in capsys.readouterr().out
    (real / MARKER).rename(real / "elsewhere")
    assert tool.main(["coco_2017_train"]) == 1 and "fetch the rest" in capsys.readouterr().out
    (real / "elsewhere").rename(real / MARKER)


def test_the_headline_mix_trains(real):
    names = ["lvis_v1_train", "coco_2017_train", "objects365_v2_train", "openimages_v6_train"]
    assert len(label_space_of(names)) == 1203 + 80 + 365 + 601
    loader = build_train_loader(names, DetectionMapper(True, large_scale_jitter(96)), 8, num_workers=0)
    iterator = iter(loader)
    seen = {sample["dataset_name"] for _ in range(6) for sample in next(iterator)}
    assert seen == set(names)


def test_detectron2s_own_readers_agree(real):
    from detectron2.data.datasets.lvis import load_lvis_json
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    theirs = load_lvis_json(str(real / "lvis/lvis_v1_train.json"), str(real / "coco") + "/", "lvis_v1_check")
    for ours, other in zip(load_card("lvis_v1_train"), theirs, strict=True):
        assert ours["file_name"] == other["file_name"] and ours["image_id"] == other["image_id"]
        assert len(ours["annotations"]) == len(other["annotations"])
        for a, b in zip(ours["annotations"], other["annotations"]):
            np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-4)
            assert a["category_id"] == b["category_id"] and a["segmentation"] == b["segmentation"]
    theirs = load_voc_instances(str(real / "VOC2007"), "trainval", get_card("voc_2007_trainval").classes)
    for ours, other in zip(load_card("voc_2007_trainval"), theirs, strict=True):
        assert ours["file_name"] == other["file_name"] and ours["image_id"] == other["image_id"]
        for a, b in zip(ours["annotations"], other["annotations"], strict=True):
            x, y, w, h = a["bbox"]
            assert [x, y, x + w, y + h] == b["bbox"] and a["category_id"] == b["category_id"]


def test_openimages_labels(real):
    data, card = load_card("openimages_v6_val"), get_card("openimages_v6_val")
    grouped = 0
    for record in data:
        boxed = {a["category_id"] for a in record["annotations"]}
        assert boxed <= set(record["pos_category_ids"]) and not boxed & set(record["neg_category_ids"])
        grouped += sum(a.get("isgroupof", 0) for a in record["annotations"])
        assert all(a["iscrowd"] == a.get("isgroupof", 0) for a in record["annotations"])
    assert grouped
    above = ancestor_matrix(card)
    egg, food = card.classes.index("Egg"), card.classes.index("Food")
    assert above[egg].sum() == 2 and above[egg, food] and not above[food, egg]


def test_objects365_spelling(real):
    text = (real / "objects365/annotations/zhiyuan_objv2_val.json").read_text()
    for wrong, right in OBJECTS365_V2_SPELLING.items():
        assert wrong in text and right in get_card("objects365_v2_val").classes


def test_class_lists():
    assert len(get_card("openimages_challenge2019_val").classes) == 500
    assert set(get_card("openimages_challenge2019_val").category_ids) < set(get_card("openimages_v6_val").category_ids)
    v1, v2 = (get_card(f"objects365_{v}_val").classes for v in ("v1", "v2"))
    assert v2[:2] == ("Person", "Sneakers") and v1[:2] == ("person", "sneakers") and v1[4] == "lamp" != v2[4].lower()
    assert all(name == name.strip() for name in (*v1, *v2))


def test_tool(tmp_path, monkeypatch, capsys):
    path = Path(__file__).parents[2] / "tools" / "make_shapeworld.py"
    spec = importlib.util.spec_from_file_location("make_shapeworld", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    args = ["--layout", "real", "--root", str(tmp_path / "r"), "--train", "2", "--val", "2", "--only", "coco", "voc"]
    assert tool.main(args) == 0 and "DETECTRON2_DATASETS=" in capsys.readouterr().out
    assert (tmp_path / "r/coco/annotations/instances_train2017.json").exists()
    assert not (tmp_path / "r/lvis").exists() and (tmp_path / "r/VOC2012").exists()
    for wrong, words in ((args, "already"), (["--only", "cocoa"], "cocoa")):
        with pytest.raises(SystemExit):
            tool.main(wrong)
        assert words in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert tool.main(["--root", str(tmp_path / "file"), "--only", "wild"]) == 1
    assert "cannot be written" in capsys.readouterr().err
