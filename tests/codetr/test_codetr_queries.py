"""Customised positive queries: caps, padding, eq. 4, and what the decoder sees."""

import math

import pytest
import torch
from codetr_models import HEADS, batch, codetr

from codetr import PositiveQueries, sample_group
from codetr.collaborators import decode_group
from codetr.heads import Coordinates
from codetr.positive_queries import QueryGroup
from polydet.dense import BACKGROUND, IGNORED
from polydet.detr import Queries


def coordinates(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    corner = torch.rand(count, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 30], dim=1)
    features = torch.randn(count, 8, generator=generator)
    return Coordinates(boxes, torch.tensor(labels), boxes + 1, features, torch.arange(count))


def test_group_keeps_positives_first_and_pads_with_negatives():
    many = coordinates([2, BACKGROUND, 0] * 6 + [IGNORED] * 5)
    few = coordinates([1] + [BACKGROUND] * 20, seed=1)
    group = sample_group([many, few], [(100, 50), (100, 100)])
    assert group.boxes.shape == (2, 12, 4) and group.counts == [12, 1]
    assert group.targets[0].labels.tolist() == [2, 0] * 6
    scale = torch.tensor([50.0, 100.0, 50.0, 100.0])
    rows = many.positives
    xyxy = torch.cat(
        [group.boxes[0, :, :2] - group.boxes[0, :, 2:] / 2, group.boxes[0, :, :2] + group.boxes[0, :, 2:] / 2], 1
    )
    torch.testing.assert_close(xyxy * scale, many.boxes[rows])
    torch.testing.assert_close(
        group.targets[0].boxes[:, :2] * scale[:2], many.boxes[rows, :2] / 2 + many.boxes[rows, 2:] / 2 + 1
    )
    assert group.features[1, 0].equal(few.features[0])
    # the rest of the second image are different negatives, trained as background
    others = group.features[1, 1:]
    assert len(others.unique(dim=0)) == 11
    assert all((few.features[1:] == o).all(1).any() for o in others)
    assert group.complete


def test_cap_and_minimum():
    group = sample_group([coordinates([0] * 40)], [(100, 100)], max_queries=15)
    assert group.counts == [15] and group.boxes.shape[1] == 15
    assert len(group.features[0].unique(dim=0)) == 15
    group = sample_group([coordinates([BACKGROUND] * 30)], [(100, 100)])
    assert group.counts == [0] and group.boxes.shape[1] == 9
    assert group.complete


def test_too_few_negatives():
    repeated = sample_group([coordinates([1, BACKGROUND])], [(100, 100)])
    assert repeated.complete and len(repeated.features[0].unique(dim=0)) == 2
    none = sample_group([coordinates([1, 1, IGNORED])], [(100, 100)], negatives="background")
    assert not none.complete
    assert none.rows == [2] and none.boxes.shape[1] == 9
    empty = sample_group([coordinates([])], [(100, 100)])
    assert empty.counts == empty.rows == [0] and empty.boxes.isfinite().all()


def test_negatives_are_all_the_rest_or_the_background():
    few = coordinates([0] + [BACKGROUND] * 4 + [IGNORED] * 40)
    mixed = sample_group([few], [(100, 100)], min_queries=40)
    assert len(mixed.features[0].unique(dim=0)) == 40
    alone = sample_group([few], [(100, 100)], min_queries=40, negatives="background")
    assert len(alone.features[0].unique(dim=0)) == 5
    with pytest.raises(ValueError, match="negatives must be all or background, got 'padding'"):
        codetr("deformable", HEADS[1:], collaboration={"negatives": "padding"})


def test_references_may_reach_over_the_image():
    """The decoder looks where the anchor is; the encoding of the query ends at the image."""
    large = Coordinates(
        torch.tensor([[-20.0, 10.0, 110.0, 60.0]]),
        torch.tensor([0]),
        torch.rand(1, 4),
        torch.rand(1, 16),
        torch.arange(1),
    )
    group = sample_group([large], [(100, 100)], min_queries=1)
    torch.testing.assert_close(group.boxes[0, 0], torch.tensor([0.45, 0.35, 1.3, 0.5]))
    module = PositiveQueries(1, 16, feature=False)
    queries = module(0, group)
    assert queries.references.equal(group.boxes)
    inside = group_of(group.boxes.clamp(max=1 - 1e-5), group.features)
    torch.testing.assert_close(queries.content, module(0, inside).content)


def group_of(boxes, features):
    return QueryGroup(boxes, features, [], [boxes.shape[1]], [boxes.shape[1]])


def literal_encoding(box, dim):
    """128 sines and cosines of 2 pi times each of cx, cy, w, h."""
    result = []
    for value in box:
        for i in range(dim // 2):
            angle = value * 2 * math.pi / 10000 ** (2 * i / dim)
            result += [math.sin(angle), math.cos(angle)]
    return result


def test_equation_4():
    torch.manual_seed(0)
    module = PositiveQueries(2, 16, position=True, head_embedding="vector").double()
    boxes = torch.rand(1, 5, 4, dtype=torch.float64) * 0.8 + 0.1
    features = torch.randn(1, 5, 16, dtype=torch.float64)
    queries = module(1, group_of(boxes, features))
    encoded = torch.tensor([literal_encoding(b, 8) for b in boxes[0].tolist()], dtype=torch.float64)
    encoded = module.box_norm[1](encoded @ module.box_proj[1].weight.T + module.box_proj[1].bias)
    projected = module.feature_norm[1](features[0] @ module.feature_proj[1].weight.T + module.feature_proj[1].bias)
    torch.testing.assert_close(queries.position[0], encoded[:, :16] + module.head_embedding.weight[1])
    torch.testing.assert_close(queries.content[0], encoded[:, 16:] + projected)
    assert queries.references is boxes


def test_variants():
    dino = PositiveQueries(2, 16, position=False, feature=False)
    queries = dino(0, group_of(torch.rand(1, 3, 4), torch.randn(1, 3, 16)))
    assert queries.position is None and queries.content.shape == (1, 3, 16)
    assert len(dino.feature_proj) == 0
    scalar = PositiveQueries(3, 16, position=True, head_embedding="scalar")
    assert scalar.head_embedding.weight.shape == (3, 1)
    assert scalar.head_embedding.weight[1] == 0 and scalar.head_embedding.weight[0] != 0
    assert PositiveQueries(1, 16, position=True, head_embedding="scalar").head_embedding.weight[0] != 0
    with pytest.raises(ValueError, match="needs position=True"):
        PositiveQueries(1, 16, head_embedding="scalar")


@pytest.mark.parametrize("kind", ["deformable", "dino", "dab"])
def test_rows_that_do_not_count_are_not_seen(kind):
    """Without negatives, each image is decoded as if it were alone in the batch."""
    model = codetr(kind, HEADS[1:], collaboration={"pad_with_negatives": False}).eval()
    memory = model.encode(model.preprocess(batch()))
    boxes = torch.rand(2, 9, 4) * 0.5 + 0.2
    group = QueryGroup(boxes, torch.randn(2, 9, 32), [], [9, 4], [9, 4])
    queries = model.collaborators.queries(0, group)
    found = decode_group(model, queries, group, memory)
    assert found.boxes.shape == (2, 2, 9, 4)
    short = Queries(queries.content[:, :4], boxes[:, :4], None if queries.position is None else queries.position[:, :4])
    expected = model.decode(short, memory)
    torch.testing.assert_close(found.boxes[:, 1, :4], expected.boxes[:, 1])
    torch.testing.assert_close(found.logits[:, 1, :4], expected.logits[:, 1])
    full = model.decode(queries, memory)
    torch.testing.assert_close(found.boxes[:, 0], full.boxes[:, 0])


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)])
def test_training_without_negatives(counts):
    model = codetr("deformable", HEADS[1:], collaboration={"pad_with_negatives": False})
    losses = model(batch(counts=counts))
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    if counts == (0, 0):
        assert losses["loss_class_co0"] == 0


def test_positive_queries_start_at_their_box():
    """Before any training the boxes of positive queries are the coordinates themselves, as far as boxes go."""
    model = codetr("dino", HEADS[1:])
    seen = {}
    original = model.criterion.forward
    model.criterion.forward = lambda branch: seen.setdefault(branch.name, branch) and original(branch)
    group = {}
    sample = model.collaborators.sample
    model.collaborators.sample = lambda *a: group.setdefault("g", sample(*a))
    model(batch())
    torch.testing.assert_close(seen["co0"].predictions.boxes[0], group["g"].boxes.clamp(0, 1), atol=1e-4, rtol=1e-4)
    pairs = seen["co0"].assignment
    assert len(pairs.query) == 2 * sum(group["g"].counts)
    assert pairs.query.equal(pairs.target)
