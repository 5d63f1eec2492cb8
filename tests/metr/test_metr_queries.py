"""Which categories are chosen, how they share the queries, and what the queries start from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metr import CategoryQuerySource
from metr.queries import Categories, adaptive_slots, choose_categories, uniform_slots
from polydet.detr import Memory, TokenLayout


def test_true_categories_are_chosen_and_order_follows_the_score():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.8, 0.2]])
    present = torch.tensor([[False, True, False, False, False]])
    index, counts = choose_categories(scores, 3, present)
    assert index.tolist() == [[0, 3, 1]]
    assert counts.tolist() == [3]
    assert choose_categories(scores, 3)[0].tolist() == [[0, 3, 2]]


def test_more_true_categories_than_places_keeps_the_best_scored():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.8, 0.2]])
    present = torch.tensor([[False, True, True, False, True]])
    index, counts = choose_categories(scores, 2, present)
    assert index.tolist() == [[2, 4]]
    assert counts.tolist() == [2]


def test_a_label_space_smaller_than_top_k():
    index, counts = choose_categories(torch.tensor([[0.1, 0.9]]), 20)
    assert index.tolist() == [[1, 0]]
    assert counts.tolist() == [2]


def test_categories_that_do_not_count_are_never_chosen():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.8], [0.9, 0.1, 0.5, 0.8]])
    allowed = torch.tensor([[False, True, True, False], [True, True, True, True]])
    index, counts = choose_categories(scores, 3, None, allowed)
    assert counts.tolist() == [2, 3]
    assert index[0, :2].tolist() == [2, 1]
    assert index[1].tolist() == [0, 3, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_uniform_shares(num_queries, counts):
    place, number = uniform_slots(num_queries, torch.tensor(counts))
    for image, count in enumerate(counts):
        shares = torch.bincount(place[image], minlength=count)
        assert len(shares) == count
        assert shares.sum() == num_queries
        # what does not divide goes to the first categories
        assert shares.tolist() == [num_queries // count + (i < num_queries % count) for i in range(count)]
        for i in range(count):
            assert number[image][place[image] == i].tolist() == list(range(shares[i]))


def make_source(allocation, num_queries=7, dim=8):
    torch.manual_seed(0)
    source = CategoryQuerySource(num_queries, dim, allocation)
    torch.nn.init.normal_(source.box_head.layers[-1].weight, std=0.1)
    return source


def make_memory(dim=8, batch=2, shapes=((6, 6), (3, 3))):
    generator = torch.Generator().manual_seed(2)
    tokens = sum(h * w for h, w in shapes)
    layout = TokenLayout(shapes, None, torch.ones(batch, len(shapes), 2))
    draw = [torch.randn(batch, tokens, dim, generator=generator) for _ in range(2)]
    return Memory(*draw, layout)


def make_categories(index, counts, dim=8, known=20):
    generator = torch.Generator().manual_seed(3)
    e, aware = torch.randn(known, dim, generator=generator), torch.randn(len(index), known, dim, generator=generator)
    index = torch.tensor(index)
    rows = torch.arange(len(index))[:, None]
    bias = torch.randn(known, generator=generator)[index]
    return Categories(index, torch.tensor(counts), aware[rows, index], e[index], bias)


def test_uniform_gives_each_category_its_own_best_tokens():
    source, memory = make_source("uniform"), make_memory()
    categories = make_categories([[4, 9, 2], [1, 0, 5]], [3, 2])
    queries, proposals = source.queries_for(memory, categories)
    features, grid = source.token_features(memory)
    assert queries.classes.tolist() == [[4, 4, 4, 9, 9, 2, 2], [1, 1, 1, 1, 0, 0, 0]]
    for image, shares in enumerate([[3, 2, 2], [4, 3, 0]]):
        start = 0
        for place, share in enumerate(shares):
            x = source.class_head.linear(features[image])
            column = x @ categories.language[image, place] / 8**0.5 + categories.bias[image, place]
            best = column.topk(share)
            mine = slice(start, start + share)
            assert torch.allclose(proposals.logits[0, image, mine, 0], best.values, atol=1e-6)
            boxes = (source.box_head(features[image, best.indices]) + grid[image, best.indices]).sigmoid()
            assert torch.allclose(queries.references[image, mine], boxes, atol=1e-6)
            content = source.content.weight[mine] + categories.content[image, place]
            assert torch.allclose(queries.content[image, mine], content)
            start += share
    assert not queries.references.requires_grad
    assert proposals.boxes.requires_grad


def test_adaptive_takes_the_best_tokens_and_leaves_no_category_out():
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(2, 30, 4, generator=generator)
    score[..., 3] -= 10  # a category that no token prefers
    unchosen = torch.tensor([[False] * 4, [False, False, True, True]])
    token, place = adaptive_slots(score, unchosen, 8)
    for image in range(2):
        pairs = list(zip(token[image].tolist(), place[image].tolist()))
        assert len(set(pairs)) == 8
        chosen = [t for t in range(4) if not unchosen[image, t]]
        guaranteed = {(int(score[image, :, t].argmax()), t) for t in chosen}
        assert guaranteed <= set(pairs)
        column = score[image][:, chosen]
        best = {(s, chosen[int(column[s].argmax())]): float(column[s].max()) for s in range(30)}
        rest = sorted((p for p in best if p not in guaranteed), key=best.get, reverse=True)
        assert set(pairs) == guaranteed | set(rest[: 8 - len(guaranteed)])
        values = [float(score[image, s, t]) for s, t in pairs]
        assert values == sorted(values, reverse=True)


def test_adaptive_source_labels_anchors_by_their_category():
    source, memory = make_source("adaptive"), make_memory()
    queries, _ = source.queries_for(memory, make_categories([[4, 9, 2], [1, 0, 5]], [3, 2]))
    assert set(queries.classes[0].tolist()) == {4, 9, 2}
    assert set(queries.classes[1].tolist()) == {1, 0}


@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
def test_padding_never_becomes_an_anchor_while_others_are_left(allocation):
    source, memory = make_source(allocation), make_memory()
    mask = torch.zeros(2, 45, dtype=torch.bool)
    mask[:, 10:] = True
    memory.layout = TokenLayout(memory.layout.spatial_shapes, mask, memory.layout.valid_ratios)
    with torch.no_grad():
        source.class_head.linear.weight.zero_()  # padding must lose by more than chance
        references = source.queries_for(memory, make_categories([[4, 9, 2], [1, 0, 5]], [3, 2]))[0].references
    assert (references < 1).all()


def test_fewer_tokens_than_queries():
    source = make_source("uniform", num_queries=50)
    queries, _ = source.queries_for(make_memory(shapes=((3, 3),)), make_categories([[4], [1]], [1, 1]))
    assert queries.content.shape[1] == 9


def test_allocation_must_be_known():
    with pytest.raises(ValueError, match="uniform or adaptive"):
        CategoryQuerySource(allocation="best")
