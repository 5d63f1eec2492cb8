"""ShapeWorld: same bytes from the same seed, whole or not at all, readable by the real readers."""

import hashlib
import json
import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest

from polydet.data import DatasetError, class_image_counts, get_card, load_card
from polydet.data.shapeworld import generate, names
from polydet.data.shapeworld.generate import PARTS, ensure_part, scenes_of, write_part
from polydet.data.shapeworld.text import describe
from polydet.data.shapeworld.world import HEIGHT, KINDS, WIDTH

SMALL = {part: dict.fromkeys(counts, 12) for part, (_, counts) in PARTS.items()}


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(generate, "PARTS", {part: (PARTS[part][0], SMALL[part]) for part in PARTS})
    return tmp_path


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_same_bytes(part, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        write_part(part, tmp_path / name, dict.fromkeys(PARTS[part][1], 4), seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


@pytest.mark.parametrize("name", ["shapes_coco_train", "shapes_lvis_val", "shapes_wild_val", "shapes_novel_val"])
def test_cards_read_what_is_written(small_world, name):
    data = load_card(name)
    assert len(data) == 12
    for record in data:
        image = cv2.imread(record["file_name"])
        assert image.shape == (HEIGHT, WIDTH, 3) == (record["height"], record["width"], 3)
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= WIDTH + 0.01 and 0 <= y < y + h <= HEIGHT + 0.01
            points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
            np.testing.assert_allclose(points.min(axis=0), (x, y), atol=0.02)
            np.testing.assert_allclose(points.max(axis=0), (x + w, y + h), atol=0.02)


def test_boxes_are_where_the_paint_is():
    """Outside all boxes two scenes that differ only in their shapes look alike; inside they do not."""
    scene = scenes_of("x", 1, names.colour_weights(), max_shapes=3)[0]
    empty = type(scene)(scene.background, scene.seed, ())
    difference = np.abs(generate.render(scene).astype(int) - generate.render(empty)).max(axis=2)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for shape in scene.shapes:
        x0, y0, x1, y1 = shape.box()
        inside[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2] = True
    assert difference[inside].mean() > 15 * max(difference[~inside].mean(), 1)  # the noise differs a little


def test_federated_labels(small_world):
    data = load_card("shapes_lvis_train")
    document = json.loads((small_world / "shapeworld/v1/lvis/lvis_train.json").read_text())
    counts = class_image_counts("shapes_lvis_train")
    assert counts.tolist() == [c["image_count"] for c in document["categories"]]
    assert get_card("shapes_lvis_train").classes == names.FINE_CLASSES
    for record in data:
        present = {a["category_id"] for a in record["annotations"]}
        assert present == set(record["pos_category_ids"])
        assert not present & set(record["neg_category_ids"]) and len(record["neg_category_ids"]) == 3
        assert set(record["not_exhaustive_category_ids"]) <= present


def test_full_size_tail_is_long():
    scenes = scenes_of("lvis/train", 1500, names.colour_weights(generate._TRAIN_TAIL))
    frequency = {
        c["frequency"]
        for c in generate.lvis_documents({"train": scenes}, np.random.default_rng(1))["train"]["categories"]
    }
    assert frequency == {"r", "c", "f"}


def test_every_colour_and_kind_has_one_fine_name():
    for kind, fine in names.FINE.items():
        got = {names.fine_name(kind, colour) for colour in generate.COLOURS}
        assert got == set(fine)
    assert not set(names.WILD.values()) & ({*names.COARSE.values(), *names.FINE_CLASSES})


def test_sentences_cover_every_object():
    weights = dict.fromkeys([(k, c) for k in KINDS for c in generate.COLOURS], 1.0)
    for scene in scenes_of("text", 30, weights):
        sentence, phrases = describe(scene, np.random.default_rng(0))
        assert sorted(i for _, _, members in phrases for i in members) == list(range(len(scene.shapes)))
        for start, end, members in phrases:
            words = sentence[start:end].split()
            assert words[0] in (("a", "an") if len(members) == 1 else ("two", "three", "four", "five"))


def test_two_processes_write_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.starmap(_ensure, [(tmp_path,)] * 2)
    assert first == second
    base = tmp_path / "shapeworld" / "v1"
    assert {p.name for p in base.iterdir()} == {"wild"}
    assert len(list((base / "wild" / "val").iterdir())) == 12


def _ensure(root):
    generate.PARTS = {"wild": (PARTS["wild"][0], {"val": 12})}
    path = ensure_part("wild", root)
    return path, path.stat().st_ino


def test_nothing_half_written(small_world, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "write_json", full_disk)
    with pytest.raises(DatasetError, match="No space left"):
        load_card("shapes_wild_val")
    assert not [p for p in (small_world / "shapeworld/v1").iterdir() if p.is_dir()]


def test_unwritable_place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match="DETECTRON2_DATASETS"):
        load_card("shapes_coco_val")
