"""Group bipartite matching: optimal within each category, and never across them."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from metr import GroupMatcher
from polydet.detr import Predictions, Targets


def random_case(seed, layers=3, batch=3, queries=12, categories=4, objects=7, spare=2):
    """Predictions, targets and query categories; `spare` categories of objects have no query."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(high, shape, generator=generator)

    predictions = Predictions(
        torch.randn(layers, batch, queries, 1, generator=generator),
        torch.rand(layers, batch, queries, 4, generator=generator) * 0.4 + 0.1,
    )
    targets = []
    for _ in range(batch):
        count = int(draw(objects + 1))
        boxes = torch.rand(count, 4, generator=generator) * 0.4 + 0.1
        targets.append(Targets(draw(categories + spare, count), boxes))
    predictions.classes = draw(categories, batch, queries)
    return predictions, targets, predictions.classes


def literal_cost(predictions, layer, image, query, target, index):
    """Eq. 7 for one pair in float64: 2 focal + 5 L1 - 2 GIoU."""
    x = float(predictions.logits[layer, image, query, 0])
    p = 1 / (1 + np.exp(-x))
    focal = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
    a = predictions.boxes[layer, image, query].double().numpy()
    b = target.boxes[index].double().numpy()
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = max(ax - aw / 2, bx - bw / 2), min(ax + aw / 2, bx + bw / 2)
    top, bottom = max(ay - ah / 2, by - bh / 2), min(ay + ah / 2, by + bh / 2)
    inter = max(0.0, right - left) * max(0.0, bottom - top)
    union = aw * ah + bw * bh - inter
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    giou = inter / union - (hull - union) / hull
    return 2 * focal + 5 * np.abs(a - b).sum() - 2 * giou


def groups_of(targets, classes, image):
    for category in targets[image].labels.unique().tolist():
        queries = (classes[image] == category).nonzero()[:, 0].tolist()
        objects = (targets[image].labels == category).nonzero()[:, 0].tolist()
        yield category, queries, objects


def cost_block(predictions, layer, image, target, queries, objects):
    return np.array([[literal_cost(predictions, layer, image, q, target, t) for t in objects] for q in queries])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_scipy_group_by_group(seed):
    predictions, targets, classes = random_case(seed)
    found = GroupMatcher()(predictions, targets)
    surplus = 0
    for image in range(len(targets)):
        for layer in range(len(predictions.boxes)):
            mine = {(int(q), int(t)) for q, t in zip(*found.of(layer, image))}
            expected = set()
            for _, queries, objects in groups_of(targets, classes, image):
                if queries:
                    block = cost_block(predictions, layer, image, targets[image], queries, objects)
                    rows, columns = linear_sum_assignment(block)
                    expected |= {(queries[r], objects[c]) for r, c in zip(rows, columns)}
                if layer == 0:
                    surplus += max(0, len(objects) - len(queries))
            assert mine == expected
    assert found.surplus == surplus


@pytest.mark.parametrize("seed", range(8))
def test_no_permutation_is_cheaper(seed):
    predictions, targets, classes = random_case(seed, layers=1, batch=1, queries=6, categories=2, objects=4, spare=0)
    found = GroupMatcher()(predictions, targets)
    pairs = {int(t): int(q) for q, t in zip(*found.of(0, 0))}
    for _, queries, objects in groups_of(targets, classes, 0):
        size = min(len(queries), len(objects))
        best = min(
            sum(literal_cost(predictions, 0, 0, q, targets[0], t) for q, t in zip(some, others))
            for some in permutations(queries, size)
            for others in permutations(objects, size)
        )
        mine = sum(literal_cost(predictions, 0, 0, pairs[t], targets[0], t) for t in objects if t in pairs)
        assert mine == pytest.approx(best, rel=1e-5, abs=1e-5)
        assert sum(t in pairs for t in objects) == size


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_categories_agree_and_pairs_are_one_to_one(seed):
    predictions, targets, classes = random_case(seed, queries=5, objects=9)
    found = GroupMatcher()(predictions, targets)
    for _layer, image, query, target in zip(found.layer, found.image, found.query, found.target):
        assert classes[image, query] == targets[image].labels[target]
    rows = torch.stack((found.layer, found.image, found.query), dim=1)
    columns = torch.stack((found.layer, found.image, found.target), dim=1)
    assert len(rows.unique(dim=0)) == len(rows)
    assert len(columns.unique(dim=0)) == len(columns)


def test_a_full_category_leaves_its_worst_object_unmatched():
    """Two queries of one category at two of three objects: the third object stays free, and is counted."""
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])
    predictions = Predictions(torch.zeros(1, 1, 3, 1), torch.stack((boxes[1], boxes[0], boxes[2]))[None, None])
    predictions.classes = torch.tensor([[7, 7, 3]])
    found = GroupMatcher()(predictions, [Targets(torch.full((3,), 7), boxes)])
    query, target = found.of(0, 0)
    assert sorted(zip(query.tolist(), target.tolist())) == [(0, 1), (1, 0)]
    assert found.surplus == 1


def test_layers_are_solved_each_on_its_own():
    predictions, targets, _ = random_case(3)
    found = GroupMatcher()(predictions, targets)
    last = Predictions(predictions.logits[2:], predictions.boxes[2:], classes=predictions.classes)
    alone = GroupMatcher()(last, targets)
    for image in range(len(targets)):
        pairs = [sorted(zip(*map(torch.Tensor.tolist, x.of(i, image)))) for x, i in ((found, 2), (alone, 0))]
        assert pairs[0] == pairs[1]
    assert found.surplus == alone.surplus


def test_queries_without_a_category_are_refused():
    predictions, targets, _ = random_case(0)
    predictions.classes = None
    with pytest.raises(ValueError, match="a category each"):
        GroupMatcher()(predictions, targets)


def test_no_objects_and_no_matching_category():
    predictions, _, classes = random_case(0, batch=2)
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert len(GroupMatcher()(predictions, [empty, empty]).query) == 0
    foreign = Targets(torch.tensor([99]), torch.full((1, 4), 0.3))
    found = GroupMatcher()(predictions, [empty, foreign])
    assert len(found.query) == 0
    assert found.surplus == 1


def test_a_cost_that_is_not_finite_names_the_image():
    predictions, _, classes = random_case(0, batch=2)
    fine = Targets(classes[0, :1], torch.full((1, 4), 0.3), "first.png")
    broken = Targets(classes[1, :1], torch.full((1, 4), 0.3), "second.png")
    predictions.boxes[1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"second\.png is not finite"):
        GroupMatcher()(predictions, [fine, broken])
