"""Operating points against a search over every score."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from test_evaluators import guesses, world  # noqa: F401

from polydet.evaluation.operating import OperatingPointEvaluator, choose_point, match_image


def found_from(score, found, truths, iou=0.5):
    """(right, detections) of one class from a score on, matched afresh and without ranks."""
    right = kept = 0
    for (boxes, scores), (truth, crowd) in zip(found, truths):
        mine = scores >= score
        match = match_image(boxes[mine], scores[mine], truth, crowd, iou)
        right, kept = right + int((match == 1).sum()), kept + int((match >= 0).sum())
    return right, kept


@pytest.mark.parametrize("seed", range(5))
def test_the_best_score_of_all(seed):
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(6):
        truth = rng.uniform(0, 80, (rng.integers(0, 5), 4)).astype(np.float32)
        truth[:, 2:] += truth[:, :2] + 10
        crowd = rng.random(len(truth)) < 0.2
        noisy = np.repeat(truth, 2, 0) + rng.normal(0, 4, (2 * len(truth), 4)).astype(np.float32)
        stray = rng.uniform(0, 80, (3, 4)).astype(np.float32)
        stray[:, 2:] += stray[:, :2] + 5
        boxes = np.concatenate([noisy, stray])
        found.append((boxes, rng.integers(1, 12, len(boxes)) / np.float32(12)))  # many equal scores
        truths.append((truth, crowd))
    objects = sum(int((~crowd).sum()) for _, crowd in truths)
    matches = [match_image(b, s, t, c, 0.5) for (b, s), (t, c) in zip(found, truths)]
    scores = np.concatenate([s[m >= 0] for (_, s), m in zip(found, matches)])
    right = np.concatenate([m[m >= 0] == 1 for m in matches])
    point = choose_point(scores, right, objects)
    tried = {s: found_from(s, found, truths) for s in np.arange(1, 13) / np.float32(12)}
    f1 = {s: 2 * hits / (kept + objects) for s, (hits, kept) in tried.items()}
    hits, kept = found_from(point.score, found, truths)
    assert 2 * hits / (kept + objects) == pytest.approx(max(f1.values()))
    assert (point.precision, point.recall) == pytest.approx((hits / kept, hits / objects))
    strict = choose_point(scores, right, objects, precision=0.6)
    allowed = [hits / objects for hits, kept in tried.values() if kept and hits and hits / kept >= 0.6]
    assert (strict is None) == (not allowed)
    if strict is not None:
        assert strict.recall == pytest.approx(max(allowed))


def test_nothing_to_choose_from():
    assert choose_point(np.ones(2), np.zeros(2, bool), 3) is None
    assert (
        choose_point(np.zeros(0), np.zeros(0, bool), 3) is None
        and choose_point(np.ones(1), np.ones(1, bool), 0) is None
    )


def test_a_perfect_detector_keeps_everything_right_and_no_stray_box(world):  # noqa: F811
    evaluator = OperatingPointEvaluator("shapes_coco_val")
    for record in evaluator.table:
        truth = [a for a in record["annotations"] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in truth] + [[0.0, 0.0, 3.0, 3.0]])
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([0.8] * len(truth) + [0.4])
        instances.pred_classes = torch.tensor([a["category_id"] for a in truth] + [0])
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    assert results["precision"] == results["recall"] == 100 and results["classes"] == len(evaluator.points) > 3
    assert all(0.4 < point.score <= 0.8 for name, point in evaluator.points.items() if name == "circle")


def test_classes_that_were_not_verified_in_an_image_do_not_count(world):  # noqa: F811
    strict, federated = OperatingPointEvaluator("shapes_lvis_val"), OperatingPointEvaluator("shapes_lvis_val")
    for evaluator in (strict, federated):
        for record, output in guesses("shapes_lvis_val"):
            evaluator.process([record], [output])
    federated.evaluate()
    strict.table = replace(strict.table, verified={})
    strict.evaluate()
    shared = set(strict.points) & set(federated.points)
    assert shared and all(federated.points[n].objects == strict.points[n].objects for n in shared)
    mean = [np.mean([e.points[n].precision for n in shared]) for e in (strict, federated)]
    assert mean[0] < mean[1]
