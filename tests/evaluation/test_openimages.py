"""The OpenImages metric against a literal, loop by loop transcription of its definition."""

import csv
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from polydet.data import DatasetCard, DatasetError, card, load_card, register_card
from polydet.data.hierarchy import read_hierarchy
from polydet.evaluation import build_evaluator, openimages
from polydet.evaluation.collect import Detections
from polydet.evaluation.openimages import _verified, average_precision, match_openimages

# a -> b -> d, a -> c -> d (two parents), c -> e; f stands alone
TREE = {
    "LabelName": "/m/root",
    "Subcategory": [
        {
            "LabelName": "/m/a",
            "Subcategory": [
                {"LabelName": "/m/b", "Subcategory": [{"LabelName": "/m/d"}]},
                {"LabelName": "/m/c", "Subcategory": [{"LabelName": "/m/d"}, {"LabelName": "/m/e"}]},
            ],
        },
        {"LabelName": "/m/f"},
    ],
}
NAMES = tuple("abcdef")
ANCESTORS = {"a": "a", "b": "ab", "c": "ac", "d": "dbca", "e": "eca", "f": "f"}
DESCENDANTS = {"a": "abcde", "b": "bd", "c": "cde", "d": "d", "e": "e", "f": "f"}
SIZE = 64


def write(folder, rng, images=14):
    """Random csv files, images and their content."""
    boxes, labels, truth = [], [], []
    (folder / "images").mkdir()
    for i in range(images):
        image_id = f"{i:016x}"
        Image.new("RGB", (SIZE, SIZE)).save(folder / "images" / f"{image_id}.jpg")
        present = rng.choice(list(NAMES), rng.integers(0, 3), replace=False).tolist()
        absent = rng.choice([n for n in NAMES if n not in present], 2, replace=False).tolist()
        objects = []
        for name in present:
            labels.append((image_id, f"/m/{name}", 1))
            for _ in range(rng.integers(1, 4)):
                x0, y0 = rng.uniform(0, 0.6, 2).round(6)
                w, h = rng.uniform(0.1, 0.39, 2).round(6)
                group = rng.random() < 0.3
                boxes.append((image_id, "x", f"/m/{name}", 1, x0, x0 + w, y0, y0 + h, 0, 0, int(group), 0, 0))
                objects.append((name, np.array([x0, y0, x0 + w, y0 + h]) * SIZE, group))
        for name in absent:
            labels.append((image_id, f"/m/{name}", 0))
        truth.append((objects, present, absent))
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    for file, head, rows in (("boxes", header, boxes), ("labels", "ImageID,LabelName,Confidence", labels)):
        with (folder / f"{file}.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([head.split(","), *rows])
    (folder / "tree.json").write_text(json.dumps(TREE))
    return truth


def make_card(folder):
    return register_card(
        DatasetCard(
            "toy_oid",
            str(folder / "boxes.csv"),
            str(folder / "images"),
            format="openimages",
            classes=NAMES,
            category_ids=tuple(f"/m/{n}" for n in NAMES),
            label_policy="federated",
            evaluator="openimages",
            files={"labels": str(folder / "labels.csv")},
            hierarchy=str(folder / "tree.json"),
        ),
        overwrite=True,
    )


def guess(truth, rng):
    """Per image a list of (class, score, box)."""
    found = []
    for objects, _, _ in truth:
        mine = []
        for name, box, group in objects:
            for _ in range(rng.integers(0, 4)):
                moved = box + rng.normal(0, 2.5, 4)
                if group:  # something inside the group
                    shrink = rng.uniform(0, 0.35) * (box[2:] - box[:2])
                    moved = np.concatenate([box[:2] + shrink, box[2:] - shrink])
                mine.append((name if rng.random() < 0.8 else rng.choice(list(NAMES)), moved))
        mine += [(rng.choice(list(NAMES)), rng.uniform(0, SIZE, 4)) for _ in range(rng.integers(0, 4))]
        fixed = []
        for name, box in mine:
            low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:]) + 1
            box = np.concatenate([low, high]).astype(np.float32).astype(float)
            fixed.append((str(name), float(np.float32(rng.random())), box))
        found.append(fixed)
    return found


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def literal(truth, found, expand):
    """AP50 per class, as the definition says, one loop at a time."""
    result = {}
    for name in NAMES:
        entries, positives = [], 0
        for (objects, present, absent), guesses in zip(truth, found):
            boxes = [(box, group) for k, box, group in objects if name in ANCESTORS[k]]
            positives += len(boxes)
            verified = any(name in ANCESTORS[k] for k in present) or any(name in DESCENDANTS[k] for k in absent)
            if not verified:
                continue
            mine = [(s, box) for k, s, box in guesses if (name in ANCESTORS[k] if expand else name == k)]
            taken, group_score = set(), {}
            for s, box in sorted(mine, key=lambda item: -item[0]):
                singles = [(i, b) for i, (b, group) in enumerate(boxes) if not group]
                groups = [(i, b) for i, (b, group) in enumerate(boxes) if group]
                hit = False
                if singles:
                    ious = [overlap(box, b) / (area(box) + area(b) - overlap(box, b)) for _, b in singles]
                    best = int(np.argmax(ious))
                    if ious[best] >= 0.5 and best not in taken:
                        taken.add(best)
                        hit = True
                if not hit and groups:
                    ioas = [overlap(box, b) / area(box) for _, b in groups]
                    best = int(np.argmax(ioas))
                    if ioas[best] >= 0.5:
                        group_score[best] = max(group_score.get(best, 0), s)
                        continue
                entries.append((s, hit))
            entries += [(s, True) for s in group_score.values()]
        if positives:
            entries.sort(key=lambda item: -item[0])
            recall, precision, true = [0.0], [0.0], 0
            for n, (_, hit) in enumerate(entries, 1):
                true += hit
                recall.append(true / positives)
                precision.append(true / n)
            recall.append(1.0)
            precision.append(0.0)
            for i in range(len(precision) - 2, -1, -1):
                precision[i] = max(precision[i], precision[i + 1])
            steps = [i for i in range(len(recall) - 1) if recall[i + 1] != recall[i]]
            result[name] = sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in steps)
    return result


@pytest.mark.parametrize("seed", range(25))
def test_equals_the_literal_definition(tmp_path, seed):
    rng = np.random.default_rng(seed)
    truth = write(tmp_path, rng)
    make_card(tmp_path)
    found = guess(truth, rng)
    evaluator = build_evaluator("toy_oid", str(tmp_path / "out"))
    for record in load_card("toy_oid"):
        mine = found[int(record["image_id"], 16)]
        instances = Instances((SIZE, SIZE))
        instances.pred_boxes = Boxes(torch.tensor(np.array([b for _, _, b in mine]).reshape(-1, 4)).float())
        instances.scores = torch.tensor([s for _, s, _ in mine])
        instances.pred_classes = torch.tensor([NAMES.index(k) for k, _, _ in mine], dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    ours = evaluator.evaluate()["bbox"]
    for metric, expand in (("AP50", False), ("AP50_expand", True)):
        expected = literal(truth, found, expand)
        assert ours[metric] == pytest.approx(100 * np.mean(list(expected.values())), abs=1e-9), metric
        if expand:
            for name, value in expected.items():
                assert ours[f"AP50-{name}"] == pytest.approx(100 * value, abs=1e-9), name


def test_group_rules():
    group = np.array([[0, 0, 40, 40.0]])
    boxes = np.array([[1, 1, 9, 9.0], [2, 2, 20, 20], [30, 30, 70, 70]])
    scores, hits = match_openimages(boxes, np.array([0.3, 0.8, 0.9]), group, np.array([True]))
    assert scores.tolist() == [0.9, 0.8] and hits.tolist() == [False, True], "the group gives one hit, its best score"
    scores, hits = match_openimages(boxes, np.array([0.3, 0.8, 0.9]), boxes[:1], np.array([False]))
    assert dict(zip(scores, hits)) == {0.9: False, 0.8: False, 0.3: True}
    twice = np.array([[0, 0, 10, 10.0]] * 2)
    scores, hits = match_openimages(twice, np.array([0.5, 0.6]), twice[:1], np.array([False]))
    assert scores.tolist() == [0.6, 0.5] and hits.tolist() == [True, False]
    empty = match_openimages(twice, np.array([0.5, 0.6]), np.zeros((0, 4)), np.zeros(0, bool))
    assert not empty[1].any() and len(empty[0]) == 2


def test_average_precision():
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(np.zeros(0, bool), 3) == 0


def test_hierarchy_of_two_parents(tmp_path):
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    above = read_hierarchy(tmp_path / "tree.json", {f"/m/{n}": k for k, n in enumerate(NAMES)})
    for k, name in enumerate(NAMES):
        assert {NAMES[i] for i in np.flatnonzero(above[k])} == set(ANCESTORS[name])


def test_absence_of_a_class_is_absence_of_what_is_below_it_only():
    above = np.array([[name in ANCESTORS[own] for name in NAMES] for own in NAMES])

    class Lists(SimpleNamespace):
        def __len__(self):
            return len(self.offsets) - 1

    def table(pos, neg):
        verified = {
            f"{kind}_category_ids": Lists(
                values=np.array([NAMES.index(n) for n in names], int), offsets=np.array([0, len(names)])
            )
            for kind, names in (("pos", pos), ("neg", neg))
        }
        none = np.zeros(0, int)
        return SimpleNamespace(verified=verified, labels=none, image_of_annotation=lambda: none)

    def names(pos="", neg=""):
        return "".join(NAMES[k] for k in _verified(table(pos, neg), above))

    assert names(pos="e") == "ace" and names(neg="e") == "e"
    assert names(pos="c") == "ac" and names(neg="c") == "cde" and names(neg="a") == "abcde"


@pytest.mark.parametrize("text", ["[]", '{"LabelName": 3}', '{"LabelName": "/m/x"}', '{"Subcategory": []}', "{"])
def test_bad_hierarchy(tmp_path, text):
    (tmp_path / "tree.json").write_text(text)
    with pytest.raises(DatasetError, match="tree.json"):
        read_hierarchy(tmp_path / "tree.json", {"/m/a": 0})


def test_detections_are_expanded_in_bounded_memory(monkeypatch):
    rng = np.random.default_rng(0)
    n, classes = 100_000, 600
    above = np.eye(classes, dtype=bool)
    above[np.arange(1, classes), rng.integers(0, classes, classes - 1)] = True
    image = rng.integers(0, 500, n).astype(np.int32)
    found = Detections(image, rng.integers(0, classes, n).astype(np.int32), rng.random(n), rng.random((n, 4)))
    verified = np.unique(rng.integers(0, 500 * classes, 2_000))
    rows, labels = np.nonzero(above[found.label])
    keep = np.isin(found.image[rows] * classes + labels, verified)
    monkeypatch.setattr(openimages, "_CHUNK", 1_000)
    tracemalloc.start()
    counted = openimages._counted(found, above, verified)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(counted.label, labels[keep]) and np.array_equal(counted.score, found.score[rows[keep]])
    assert peak < n * classes / 10, "one [n, K] array would be ten times that"


def test_cards_without_verified_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "_CARDS", dict(card._CARDS))
    document = {"images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps({**document, "categories": [{"id": 1, "name": "a"}]}))
    register_card(DatasetCard("plain", str(tmp_path / "a.json"), str(tmp_path), evaluator="openimages"))
    with pytest.raises(DatasetError, match=r"'plain' \(coco\) has no verified labels"):
        build_evaluator("plain")
