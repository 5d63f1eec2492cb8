"""The matcher against brute force, scipy, and the literal cost; time at 2,249 classes."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from polydet.detr import HungarianMatcher, Predictions, Targets


def problem(
    layers: int, queries: int, counts: list[int], classes: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Predictions, list[Targets]]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, classes, generator=g, dtype=dtype)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=g, dtype=dtype) * 0.5 + 0.1
    targets = [
        Targets(
            torch.randint(0, classes, (n,), generator=g), torch.rand(n, 4, generator=g, dtype=dtype) * 0.5 + 0.1, f"{i}"
        )
        for i, n in enumerate(counts)
    ]
    return Predictions(logits, boxes), targets


def literal_cost(logits: torch.Tensor, boxes: torch.Tensor, target: Targets, kind: str) -> np.ndarray:
    """All classes first, one layer and image at a time, as the authors write it."""
    if kind == "focal":
        p = logits.sigmoid()
        negative = 0.75 * p**2 * -(1 - p).log()
        positive = 0.25 * (1 - p) ** 2 * -p.log()
        class_cost = positive[:, target.labels] - negative[:, target.labels]
    else:
        class_cost = -logits.softmax(-1)[:, target.labels]
    distance = (boxes[:, None] - target.boxes[None]).abs().sum(-1)
    giou = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(target.boxes, "cxcywh", "xyxy"))
    return (2 * class_cost + 5 * distance - 2 * giou).numpy()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 10_000), st.sampled_from(["focal", "softmax"]))
def test_equals_brute_force(objects: int, queries: int, seed: int, kind: str) -> None:
    predictions, targets = problem(1, queries, [objects], 4, seed)
    query, target = HungarianMatcher(kind)(predictions, targets).of(0, 0)
    assert len(query) == min(objects, queries)
    if not objects:
        return
    cost = literal_cost(predictions.logits[0, 0], predictions.boxes[0, 0], targets[0], kind)
    if objects <= queries:
        totals = [
            sum(cost[q, t] for t, q in enumerate(chosen)) for chosen in itertools.permutations(range(queries), objects)
        ]
    else:
        totals = [
            sum(cost[q, t] for q, t in enumerate(chosen)) for chosen in itertools.permutations(range(objects), queries)
        ]
    assert cost[query.numpy(), target.numpy()].sum() == pytest.approx(min(totals))


@pytest.mark.parametrize("kind", ["focal", "softmax"])
def test_equals_scipy_for_every_layer_and_image(kind: str) -> None:
    predictions, targets = problem(3, 60, [17, 0, 31, 1], 20, 0)
    assignment = HungarianMatcher(kind)(predictions, targets)
    for layer, image in itertools.product(range(3), range(4)):
        expected = linear_sum_assignment(
            literal_cost(predictions.logits[layer, image], predictions.boxes[layer, image], targets[image], kind)
        )
        query, target = assignment.of(layer, image)
        order = query.argsort()
        assert query[order].tolist() == expected[0].tolist()
        assert target[order].tolist() == expected[1].tolist()


def test_no_objects_at_all() -> None:
    predictions, targets = problem(2, 5, [0, 0], 3, 0)
    assert len(HungarianMatcher()(predictions, targets).query) == 0


def test_more_objects_than_queries_leaves_the_worst_without() -> None:
    predictions, targets = problem(1, 3, [8], 3, 0)
    assignment = HungarianMatcher()(predictions, targets)
    assert sorted(assignment.query.tolist()) == [0, 1, 2]
    assert len(set(assignment.target.tolist())) == 3


@pytest.mark.parametrize("where", ["logits", "boxes", "target"])
def test_names_the_image_whose_cost_is_not_finite(where: str) -> None:
    predictions, targets = problem(2, 6, [2, 3], 4, 0)
    targets[1].name = "(image_id=42)"
    if where == "logits":
        predictions.logits[1, 1] = float("nan")
    elif where == "boxes":
        predictions.boxes[0, 1, 2] = float("inf")
    else:
        targets[1].boxes[0, 0] = float("nan")
    with pytest.raises(ValueError, match="image_id=42.*not finite"):
        HungarianMatcher()(predictions, targets)


def test_a_broken_image_without_objects_does_not_stop_the_others() -> None:
    predictions, targets = problem(1, 4, [2, 0], 3, 0)
    predictions.logits[:, 1] = float("nan")
    assert len(HungarianMatcher()(predictions, targets).query) == 2


def test_refuses_an_unknown_cost() -> None:
    with pytest.raises(ValueError, match="focal or softmax"):
        HungarianMatcher("hinge")  # type: ignore[arg-type]


def test_gathering_labels_first_is_ten_times_as_fast_at_2249_classes() -> None:
    predictions, targets = problem(6, 300, [8, 8], 2249, 0, torch.float32)
    labels = torch.stack([t.labels for t in targets])
    matcher = HungarianMatcher()

    def naive() -> None:  # the class cost of all classes, then the columns
        p = predictions.logits.sigmoid()
        cost = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
        cost[..., labels[0]]

    def seconds(function) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(lambda: matcher.class_cost(predictions.logits, labels)) < 0.1 * seconds(naive)
