"""Multi-label mAP and the report over several datasets."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from polydet.data import DatasetCard, get_card, load_card, register_card
from polydet.data.shapeworld import generate
from polydet.evaluation import build_evaluator, summarise, unseen_classes, write_report


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    patch.setattr(generate, "PARTS", {p: (w, dict.fromkeys(c, 20)) for p, (w, c) in generate.PARTS.items()})
    yield root
    patch.undo()


@pytest.mark.parametrize("name", ["shapes_coco_val", "shapes_lvis_val"])
def test_multilabel(world, name):
    data, classes = load_card(name), get_card(name).classes
    scores = torch.rand(len(data), len(classes), generator=torch.Generator().manual_seed(0))
    evaluator = build_evaluator(name, None, "multilabel")
    for record, row in zip(data, scores):
        evaluator.process([record], [{"class_scores": row}])
    ours = evaluator.evaluate()["classification"]
    expected = []
    for k in range(len(classes)):
        rows, truth = [], []
        for i, record in enumerate(data):
            present = any(a["category_id"] == k for a in record["annotations"])
            if name == "shapes_coco_val" or present or k in record["neg_category_ids"]:
                rows.append(float(scores[i, k]))
                truth.append(present)
        if any(truth):
            expected.append(100 * average_precision_score(truth, rows))
            assert ours[f"AP-{classes[k]}"] == pytest.approx(expected[-1], abs=1e-9)
    assert ours["mAP"] == pytest.approx(np.mean(expected), abs=1e-9)
    with pytest.raises(ValueError, match="class_scores"):
        evaluator.process([data[0]], [{"class_scores": torch.zeros(3)}])


def test_a_model_without_class_scores_is_said_loudly_and_keeps_its_other_results(world, caplog):
    record = load_card("shapes_coco_val")[0]
    evaluator = build_evaluator("shapes_coco_val", None, "multilabel")
    evaluator.process([record], [{"instances": None}])
    with caplog.at_level("ERROR", logger="polydet.evaluation.multilabel"):
        assert evaluator.evaluate() == {}
    assert "no class_scores" in caplog.text and "without 'multilabel'" in caplog.text


def test_means_over_datasets_and_classes(tmp_path):
    register_card(DatasetCard("one_class", "x.json", "x", classes=("Cottontail-Rabbit",)), overwrite=True)
    results = {
        "first": {"bbox": {"AP": 40.0, "AP50": 60.0, "AP-cat": 30.0, "AP-dog": 50.0, "AP-gap": float("nan")}},
        "one_class": {"bbox": {"AP": 70.0, "AP50": 90.0}},
    }
    summary = summarise(results, trained=["Dog", "traffic light"])
    assert summary == {
        "mAP_D": 55.0,
        "mAP_C": pytest.approx(50.0),
        "mAP_C_unseen": pytest.approx(50.0),
        "unseen": 3.0,
    }
    write_report(results, tmp_path, trained=["Dog"])
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["mAP_D"] == 55.0
    text = (tmp_path / "report.txt").read_text()
    assert "first" in text and "70.00" in text and "mAP_C" in text
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_openimages_counts_with_its_own_metric(tmp_path):
    """ScaleDet's mean over LVIS, COCO, Objects365 and OpenImages; report.json has no NaN, which is no json."""
    results = {
        "coco": {"bbox": {"AP": 40.0, "AP-cat": 30.0, "AP-dog": 50.0, "APs": float("nan")}},
        "oid": {"bbox": {"AP50": 55.0, "AP50_expand": 60.0, "AP50-T-shirt": 60.0}},
    }
    assert write_report(results, tmp_path) == {"mAP_D": 50.0, "mAP_C": pytest.approx(140 / 3)}
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text)["results"]["coco"]["bbox"]["APs"] is None and "NaN" not in text


def test_unseen():
    assert unseen_classes(["Jet ski", "jellyfish", "puffin"], ["jet_ski", "Jellyfish"]) == ["puffin"]
