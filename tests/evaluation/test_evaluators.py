"""Evaluators of cards against the packages they stand on, in one process and in two."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from polydet.data import DatasetCard, DatasetError, get_card, load_card, register_card
from polydet.data.shapeworld import generate
from polydet.evaluation import build_evaluator


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


def test_lvis_equals_the_package(world, tmp_path):
    import types

    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    ours = score("shapes_lvis_val", tmp_path)["bbox"]
    lvis.eval.np = types.SimpleNamespace(**{**vars(np), "float": float})
    truth = LVIS(str(world / "shapeworld/v1/lvis/lvis_val.json"))
    theirs = LVISEval(truth, LVISResults(truth, detections("shapes_lvis_val")), "bbox")
    theirs.run()
    for metric in ("AP", "AP50", "APc", "APf"):
        assert ours[metric] == pytest.approx(100 * theirs.get_results()[metric], abs=1e-9), metric


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


def share(folder):
    """In one of two processes: process every second image; the main process leaves its results."""
    from detectron2.utils import comm

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


def test_two_processes_score_as_one(world, tmp_path):
    launch(share, 2, dist_url="auto", args=(str(tmp_path),))
    for name in ("shapes_coco_val", "shapes_lvis_val"):
        both = json.loads((tmp_path / f"{name}.json").read_text())["bbox"]
        for metric, value in score(name, tmp_path / "one")["bbox"].items():
            assert both[metric] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, metric)
