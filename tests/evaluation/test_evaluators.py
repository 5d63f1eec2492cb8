"""Evaluators of cards against the packages they stand on, in one process and in two."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from polydet.data import DatasetCard, DatasetError, card, get_card, load_card, register_card
from polydet.data.shapeworld import generate
from polydet.evaluation import build_evaluator
from polydet.evaluation.collect import Detections, best_per_class


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    patch.setattr(generate, "PARTS", {p: (w, dict.fromkeys(c, 25)) for p, (w, c) in generate.PARTS.items()})
    for part in ("coco", "lvis"):
        generate.ensure_part(part)
    yield root
    patch.undo()


def guesses(name, seed=0, jitter=3.0):
    """Noisy copies of the ground truth, some with another class, and some boxes at random."""
    rng = np.random.default_rng(seed)
    classes = len(get_card(name).classes)
    for record in load_card(name):
        found = [(a["bbox"], a["category_id"]) for a in record["annotations"] for _ in range(rng.integers(0, 3))]
        found += [(rng.uniform(5, 60, 4).tolist(), rng.integers(classes)) for _ in range(3)]
        boxes = np.array([box for box, _ in found]).reshape(-1, 4) + rng.normal(0, jitter, (len(found), 4))
        boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
        wrong = rng.random(len(found)) < 0.2
        labels = np.where(wrong, rng.integers(0, classes, len(found)), [label for _, label in found])
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.scores = torch.tensor(rng.random(len(found)), dtype=torch.float32)
        instances.pred_classes = torch.tensor(labels)
        yield record, {"instances": instances}


def score(name, folder, **options):
    evaluator = build_evaluator(name, str(folder))
    evaluator.reset()
    for record, output in guesses(name, **options):
        evaluator.process([record], [output])
    return evaluator.evaluate()


def detections(name, **options):
    """The same guesses as COCO results with the file's category ids."""
    ids = get_card(name).category_ids
    rows = []
    for record, output in guesses(name, **options):
        found = output["instances"]
        for box, s, k in zip(found.pred_boxes.tensor, found.scores.tolist(), found.pred_classes.tolist()):
            x0, y0, x1, y1 = box.tolist()
            width, height = (box[2:] - box[:2]).tolist()
            rows.append(
                {"image_id": record["image_id"], "category_id": ids[k], "bbox": [x0, y0, width, height], "score": s}
            )
    return rows


def test_coco_equals_pycocotools(world, tmp_path):
    ours = score("shapes_coco_val", tmp_path)["bbox"]
    truth = COCO(str(world / "shapeworld/v1/coco/instances_val.json"))
    theirs = COCOeval(truth, truth.loadRes(detections("shapes_coco_val")), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    for metric, value in zip(("AP", "AP50", "AP75"), theirs.stats):
        assert ours[metric] == pytest.approx(100 * value, abs=1e-9) and 5 < ours[metric] < 95
    assert {f"AP-{name}" for name in get_card("shapes_coco_val").classes} <= set(ours)


def random_lvis(rng, images=25, classes=12):
    """A random LVIS document and detections of any size, with ties, near misses and all frequency groups."""
    document = {"images": [], "annotations": [], "categories": []}
    for k in range(1, classes + 1):
        document["categories"].append({"id": k, "name": f"c{k}", "frequency": "rcf"[k % 3], "synset": "x"})
    found = []
    for i in range(1, images + 1):
        labels = rng.choice(np.arange(1, classes + 1), rng.integers(0, 4), replace=False).tolist()
        absent = sorted(set(range(1, classes + 1)) - set(labels))
        partial = labels[:1] if rng.random() < 0.4 else []
        document["images"].append(
            {
                "id": i,
                "height": 400,
                "width": 500,
                "coco_url": f"http://x/val/{i}.jpg",
                "neg_category_ids": rng.choice(absent, 3, replace=False).tolist(),
                "not_exhaustive_category_ids": partial,
            }
        )
        for k in labels:
            for _ in range(rng.integers(1, 5)):
                x, y = rng.uniform(0, 150, 2).round(1)
                w, h = np.exp(rng.uniform(np.log(5), np.log(220), 2)).round(1)
                item = {"id": len(document["annotations"]) + 1, "image_id": i, "category_id": k}
                area = w * h * rng.uniform(0.4, 1)
                document["annotations"].append({**item, "bbox": [x, y, w, h], "area": area})
                for _ in range(rng.integers(0, 4)):
                    box = np.array([x, y, w, h]) + rng.normal(0, 0.06, 4) * max(w, h)
                    found.append((i, k if rng.random() < 0.85 else int(rng.integers(1, classes + 1)), box))
        for _ in range(rng.integers(0, 12)):
            found.append((i, int(rng.integers(1, classes + 1)), rng.uniform(5, 200, 4)))
    scores = (rng.random(len(found)) * 20).round() / 20 if rng.random() < 0.5 else rng.random(len(found))
    return document, found, scores.astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["lvis", "lvis_fixed"])
def test_lvis_equals_the_package(tmp_path, kind, seed):
    import types

    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    rng = np.random.default_rng(seed)
    document, found, scores = random_lvis(rng)
    (tmp_path / "lvis.json").write_text(json.dumps(document, default=float))
    card = DatasetCard("random_lvis", str(tmp_path / "lvis.json"), str(tmp_path), format="lvis", evaluator="lvis")
    register_card(card, overwrite=True)
    evaluator = build_evaluator("random_lvis", None, {"kind": "lvis", "max_dets": 9} if kind == "lvis" else kind)
    rows = []
    for record in load_card("random_lvis"):
        mine = [j for j, item in enumerate(found) if item[0] == record["image_id"]]
        instances = Instances((400, 500))
        boxes = torch.tensor(np.array([found[j][2] for j in mine]).reshape(-1, 4), dtype=torch.float32)
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clamp(min=1)
        instances.pred_boxes, instances.scores = Boxes(boxes), torch.tensor(scores[mine])
        instances.pred_classes = torch.tensor([found[j][1] - 1 for j in mine], dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
        for j, box in zip(mine, boxes):
            size = (box[2:] - box[:2]).tolist()
            row = {"image_id": record["image_id"], "category_id": found[j][1], "score": float(scores[j])}
            rows.append({**row, "bbox": [*box[:2].tolist(), *size]})
    ours = evaluator.evaluate()["bbox"]
    lvis.eval.np = types.SimpleNamespace(**{**vars(np), "float": float})
    truth = LVIS(str(tmp_path / "lvis.json"))
    theirs = LVISEval(truth, LVISResults(truth, rows, max_dets=9 if kind == "lvis" else -1), "bbox")
    theirs.run()
    for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
        value = theirs.get_results()[metric]
        expected = np.nan if value == -1 else 100 * value
        assert ours[metric] == pytest.approx(expected, abs=1e-9, nan_ok=True), metric
    assert 5 < ours["AP"] < 90


def test_own_lvis_files(tmp_path, monkeypatch):
    """Two files, classes without ids, images that the card leaves out, and a box that is not finite."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(card, "_CARDS", dict(card._CARDS))
    for name, first in (("a", 0), ("b", 10), ("other", 12)):
        ids = range(first, first + 3)
        images = [{"id": i, "coco_url": f"x/y/{i}.jpg", "height": 48, "width": 64} for i in ids]
        boxes = [{"id": 3 * i, "image_id": i, "category_id": 7, "bbox": [5, 5, 20, 20]} for i in ids]
        boxes.append({**boxes[0], "id": 999 + first, "bbox": [5, 5, float("nan"), 20]})
        document = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "thing"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    fields = {"format": "lvis", "classes": ("thing",), "label_policy": "federated", "evaluator": "lvis"}
    register_card(DatasetCard("other", "other.json", ".", **fields))
    options = {"exclude_images_of": "other"}
    register_card(DatasetCard("own", ("a.json", "b.json"), ".", **fields, options=options))
    found = Instances((48, 64), pred_boxes=Boxes(torch.tensor([[5.0, 5, 25, 25]])))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    evaluator = build_evaluator("own")
    for number, record in enumerate(load_card("own")):
        evaluator.process([record], [{"instances": found if number != 4 else found[:0]}])
    recall = (evaluator.evaluate()["bbox"]["AP50"] + 1e-6) // (100 / 101)
    assert len(load_card("own")) == 5 and recall == 81, "four of five boxes: 81 of 101 recalls are reached"


def test_fixed_ap_keeps_the_best_of_each_class():
    rng = np.random.default_rng(0)
    n = 5000
    everything = Detections(
        rng.integers(0, 40, n).astype(np.int32),
        rng.integers(0, 7, n).astype(np.int32),
        rng.random(n).astype(np.float32),
        rng.random((n, 4)).astype(np.float32),
    )
    kept = best_per_class(everything, 100)
    for k in range(7):
        mine = np.sort(everything.score[everything.label == k])[::-1][:100]
        assert np.array_equal(np.sort(kept.score[kept.label == k])[::-1], mine)
    # pruned in pieces, the same remain
    pieces = Detections.empty()
    for start in range(0, n, 700):
        rows = np.arange(start, min(start + 700, n))
        pieces = best_per_class(Detections.join([pieces, everything.take(rows)]), 100)
    assert np.array_equal(pieces.score, kept.score) and np.array_equal(pieces.box, kept.box)


def test_batches_in_another_order_change_nothing(world, tmp_path):
    kept = []
    for order in (1, -1):
        evaluator = build_evaluator("shapes_lvis_val", str(tmp_path / str(order)))
        for record, output in list(guesses("shapes_lvis_val"))[::order]:
            evaluator.process([record], [output])
        kept.append((evaluator.evaluate(), np.load(tmp_path / str(order) / "detections.npz")))
    np.testing.assert_equal(kept[0][0], kept[1][0])  # NaN equals NaN
    for name in ("image", "label", "score", "box"):
        assert np.array_equal(kept[0][1][name], kept[1][1][name])


def test_classes_in_another_order_and_absent_classes(world, tmp_path):
    """Per-class results carry the right names whatever the order of the file's ids."""
    source = json.loads((world / "shapeworld/v1/coco/instances_val.json").read_text())
    ids = {c["id"]: 50 - 3 * c["id"] for c in source["categories"]}
    for item in source["categories"]:
        item["id"] = ids[item["id"]]
    for item in source["annotations"]:
        item["category_id"] = ids[item["category_id"]]
        del item["area"], item["iscrowd"]
    del source["info"]
    (world / "shuffled.json").write_text(json.dumps(source))
    classes = (*get_card("shapes_coco_val").classes, "unicorn")
    register_card(DatasetCard("shuffled", "shuffled.json", "shapeworld/v1/coco/val", classes=classes), overwrite=True)
    load_card("shuffled")
    assert sorted(MetadataCatalog.get("shuffled").thing_dataset_id_to_contiguous_id.values()) == list(range(9))
    perfect = build_evaluator("shuffled", str(tmp_path / "c"))
    perfect.reset()
    for record in load_card("shuffled"):
        instances = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes, instances.scores = Boxes(boxes), torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        instances = instances[instances.pred_classes != 2]  # "square" is never found
        perfect.process([record], [{"instances": instances}])
    result = perfect.evaluate()["bbox"]
    assert result["AP-square"] == 0 and result["AP-circle"] == pytest.approx(100)
    assert result["AP"] == pytest.approx(100 * 7 / 8) and np.isnan(result["AP-unicorn"])


def test_no_detections(world, tmp_path):
    for name in ("shapes_coco_val", "shapes_lvis_val"):
        evaluator = build_evaluator(name, str(tmp_path))
        evaluator.reset()
        for record in load_card(name):
            empty = Instances((record["height"], record["width"]))
            empty.pred_boxes, empty.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
            empty.pred_classes = torch.zeros(0, dtype=torch.int64)
            evaluator.process([record], [{"instances": empty}])
        assert "bbox" in evaluator.evaluate()


def test_unknown_evaluator(world):
    register_card(DatasetCard("odd", "x.json", "x", classes=("a",), evaluator="tea leaves"), overwrite=True)
    with pytest.raises(DatasetError, match="tea leaves"):
        build_evaluator("odd")


def share(rank, folder):
    """In one of two processes: process every second image; the main process leaves its results."""
    from detectron2.utils import comm

    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in ("shapes_coco_val", "shapes_lvis_val"):
        evaluator = build_evaluator(name, folder)
        evaluator.reset()
        for i, (record, output) in enumerate(guesses(name)):
            if i % 2 == comm.get_rank():
                evaluator.process([record], [output])
        result = evaluator.evaluate()
        if comm.is_main_process():
            with open(f"{folder}/{name}.json", "w") as handle:
                json.dump(result, handle)
        else:
            assert not result
    torch.distributed.destroy_process_group()


def test_two_processes_score_as_one(world, tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=share, args=(r, str(tmp_path))) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for name in ("shapes_coco_val", "shapes_lvis_val"):
        both = json.loads((tmp_path / f"{name}.json").read_text())["bbox"]
        for metric, value in score(name, tmp_path / "one")["bbox"].items():
            assert both[metric] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, metric)


@pytest.mark.parametrize("ids", [[0, 1, 2], [None, None, None], ["a", "b", "c"]])
def test_annotation_ids_that_pycocotools_cannot_take(bare, ids):
    """pycocotools takes a match with annotation 0 for none (Roboflow's exports begin there) and needs numbers."""
    polygons = [[[5, 5, 25, 5, 25, 25, 5, 25]], [], [[1, 2]]]
    annotations = [
        {"image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "segmentation": polygons[i]} for i in range(3)
    ]
    for annotation, id_ in zip(annotations, ids):
        if id_ is not None:
            annotation["id"] = id_
    scores = bare(annotations, with_masks=True)
    assert scores["bbox"]["AP"] == scores["segm"]["AP"] == pytest.approx(100)


def test_predicted_masks_without_annotated_ones(bare, caplog):
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20]} for i in range(3)]
    scores = bare(annotations, with_masks=True)
    assert list(scores) == ["bbox"] and "bare has no masks" in caplog.text


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Scores a perfect detector on a COCO file with the given annotations of three images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(card, "_CARDS", dict(card._CARDS))

    def run(annotations, with_masks):
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in range(3)]
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (tmp_path / "bare.json").write_text(json.dumps(document))
        register_card(DatasetCard("bare", "bare.json", "."), overwrite=True)
        evaluator = build_evaluator("bare", str(tmp_path / "out"))
        evaluator.reset()
        for record in load_card("bare"):
            found = Instances((48, 64), pred_boxes=Boxes(torch.tensor([[5.0, 5, 25, 25]])))
            found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
            if with_masks:
                found.pred_masks = torch.zeros(1, 48, 64, dtype=torch.bool)
                found.pred_masks[:, 5:25, 5:25] = True
            evaluator.process([record], [{"instances": found}])
        return evaluator.evaluate()

    return run
