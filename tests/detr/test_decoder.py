"""Refinement, look-forward-once and twice, query positions, two-stage selection, post-processing."""

from __future__ import annotations

import pytest
import torch

from polydet.detr import (
    AnchorPosition,
    BestClass,
    ConditionalDecoderLayer,
    ConditionalPosition,
    Decoder,
    DecoderLayer,
    DeformableDecoderLayer,
    Queries,
    TopK,
    TwoStageQueries,
)
from polydet.detr.attention import ConditionalCrossAttention, dot_product_attention
from polydet.detr.decoder import decode_boxes
from polydet.detr.postprocess import to_instances
from polydet.layers import inverse_sigmoid

from .builders import CLASSES, DENSE, DIM, QUERIES, batch, build


class DetachedContent(DeformableDecoderLayer):
    """Starts from detached content, so that layers are joined by references alone."""

    def forward(self, content, position, spatial, references, memory, mask=None):
        return super().forward(content.detach(), position, spatial, references, memory, mask)


@pytest.mark.parametrize(("twice", "reaches"), [(False, [False, False, True]), (True, [False, True, True])])
def test_look_forward_twice_passes_gradient_to_the_previous_layer(twice: bool, reaches: list[bool]) -> None:
    torch.manual_seed(0)
    decoder = Decoder(
        DetachedContent(**DENSE), 3, AnchorPosition(DIM), refine=True, look_forward_twice=twice, norm=True
    )
    model = build("dino", decoder=decoder).double()
    torch.nn.init.normal_(model.box_heads[0].layers[-1].weight, std=0.1)
    memory = model.encode(model.preprocess(batch()))
    model.decode(model.build_queries(memory, None), memory).boxes[-1].sum().backward()
    found = [
        layer.ffn.linear1.weight.grad is not None and bool(layer.ffn.linear1.weight.grad.any())
        for layer in decoder.layers
    ]
    assert found == reaches


def test_refinement_moves_references_and_look_forward_keeps_values() -> None:
    boxes = []
    for twice in (False, True):
        model = build("deformable_pp", seed=3).double()
        for head in model.box_heads:
            torch.manual_seed(5)
            torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
        model.decoder.look_forward_twice = twice
        memory = model.encode(model.preprocess(batch()))
        out = model.decoder(model.build_queries(memory, None), memory, model.box_heads)
        torch.testing.assert_close(out.references[1], out.boxes[0])
        torch.testing.assert_close(out.references[2], out.boxes[1])
        assert not out.references[1].requires_grad
        boxes.append(out.boxes)
    torch.testing.assert_close(boxes[0], boxes[1])


def test_look_forward_twice_needs_refinement() -> None:
    with pytest.raises(ValueError, match="needs refine"):
        Decoder(DecoderLayer(**DENSE), 2, look_forward_twice=True)


def test_boxes_from_points_boxes_and_nothing() -> None:
    delta = torch.randn(2, 3, 4, dtype=torch.float64)
    point, box = torch.rand(2, 3, 2, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(decode_boxes(delta, None), delta.sigmoid())
    torch.testing.assert_close(decode_boxes(torch.zeros_like(delta), box), box)
    from_point = decode_boxes(delta, point)
    torch.testing.assert_close(from_point[..., 2:], delta[..., 2:].sigmoid())
    torch.testing.assert_close(inverse_sigmoid(from_point[..., :2]) - delta[..., :2], inverse_sigmoid(point))
    assert decode_boxes(delta.bfloat16(), box.float()).dtype == torch.float32
    assert decode_boxes(delta.bfloat16(), None).dtype == torch.float32


def test_layers_say_what_they_miss() -> None:
    model = build("deformable_pp")
    memory = model.encode(model.preprocess(batch()))
    content = torch.zeros(2, 5, DIM)
    with pytest.raises(ValueError, match="needs queries with references"):
        model.decode(Queries(content, position=content), memory)
    conditional = Decoder(ConditionalDecoderLayer(**DENSE), 1)
    with pytest.raises(ValueError, match="query_position"):
        conditional(Queries(content, position=content), memory, model.box_heads)
    conditional = Decoder(ConditionalDecoderLayer(**DENSE), 1, ConditionalPosition(DIM))
    with pytest.raises(ValueError, match="learned positions"):
        conditional(Queries(content, references=torch.rand(2, 5, 2)), memory, model.box_heads)


def test_conditional_attention_is_the_literal_formula() -> None:
    """Attention over [content, spatial] concatenated within each head (Conditional DETR, eq. 2)."""
    torch.manual_seed(0)
    heads, dim = 2, 8
    attention = ConditionalCrossAttention(dim, heads, add_query_position=False).double()
    content, position, spatial = torch.randn(3, 1, 4, dim, dtype=torch.float64)
    memory, memory_position = torch.randn(2, 1, 6, dim, dtype=torch.float64)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    found = attention(content, position, spatial, memory, memory_position, padding)
    parts = []
    width = dim // heads
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        score = (
            attention.query_content(content)[0, :, part] @ attention.key_content(memory)[0, :, part].T
            + attention.query_spatial(spatial)[0, :, part] @ attention.key_position(memory_position)[0, :, part].T
        ) / (2 * width) ** 0.5
        score[:, 4:] = -torch.inf
        parts.append(score.softmax(-1) @ attention.value(memory)[0, :, part])
    torch.testing.assert_close(found[0], attention.out(torch.cat(parts, dim=-1)))


def test_attention_mask_blocks() -> None:
    q, k, v = torch.randn(3, 1, 5, 8)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[:, 3] = True
    changed = v.clone()
    changed[:, 3] = 100.0
    torch.testing.assert_close(dot_product_attention(q, k, v, 2, mask), dot_product_attention(q, k, changed, 2, mask))


def test_mixed_selection_leaves_content_independent_of_the_image() -> None:
    for member, independent in (("dino", True), ("deformable_pp", True), ("deformable_two_stage", False)):
        model = build(member).eval()
        contents, references = [], []
        for seed in (0, 1):
            queries = model.build_queries(model.encode(model.preprocess(batch(seed=seed))), None)
            contents.append(queries.content)
            references.append(queries.references)
        assert torch.equal(contents[0], contents[1]) == independent
        assert not torch.equal(references[0], references[1])
        assert not references[0].requires_grad


@pytest.mark.parametrize(("rank", "column"), [("first", 0), ("max", 3)])
def test_two_stage_takes_the_best_tokens(rank: str, column: int) -> None:
    source = TwoStageQueries(CLASSES, 4, DIM, rank=rank)  # type: ignore[arg-type]
    logits = torch.zeros(1, 50, CLASSES)
    logits[..., 3] = 2.0 if rank == "first" else 0.0
    best = [7, 31, 2, 19]
    for score, index in zip((9.0, 8.0, 7.0, 6.0), best):
        logits[0, index, column] = score
    assert source.select(logits)[0].tolist() == best


def test_proposals_lie_on_their_tokens_and_padding_proposes_nothing() -> None:
    model = build("dino").eval()
    inputs = batch(((64, 96), (128, 64)), (0, 0))
    memory = model.encode(model.preprocess(inputs))
    features, grid = model.queries.token_features(memory)
    boxes = grid.sigmoid()
    usable = torch.isfinite(grid).all(-1)
    assert not usable[memory.layout.padding_mask].any()
    first = boxes[0][usable[0]]
    torch.testing.assert_close(first[:, :2], memory.layout.centers[0][usable[0]])
    levels = memory.layout.levels[usable[0]]
    torch.testing.assert_close(first[:, 2], 0.05 * 2.0**levels)
    # tokens that may not propose look alike, whatever the memory says there
    assert len(features[~usable].unique(dim=0)) == 1


def test_fewer_tokens_than_queries() -> None:
    model = build("dino").eval()
    with torch.no_grad():
        memory = model.encode(model.preprocess(batch(((4, 4),), (0,))))
        assert model.build_queries(memory, None).content.shape[1] == memory.tokens.shape[1] < QUERIES


def test_two_stage_refuses_content_without_position() -> None:
    with pytest.raises(ValueError, match="use both"):
        TwoStageQueries(3, content="proposal", position="anchor")


def test_top_k_over_queries_and_classes() -> None:
    logits = torch.tensor([[3.0, -1.0], [2.0, 2.5], [-4.0, 0.0]])
    boxes = torch.rand(3, 4)
    scores, classes, chosen = TopK(3)(logits, boxes)
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.5, 2.0]).sigmoid())
    assert classes.tolist() == [0, 1, 0]
    assert torch.equal(chosen, boxes[[0, 1, 1]])
    assert len(TopK(100)(logits, boxes)[0]) == 6


def test_soft_nms_lowers_duplicates_of_a_class() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    boxes = torch.stack((box, box + 0.001, torch.tensor([0.2, 0.2, 0.1, 0.1])))
    logits = torch.tensor([[3.0, -9.0], [2.9, -9.0], [1.0, -9.0]])
    scores, _, chosen = TopK(3, soft_nms_iou=0.8, max_detections=2)(logits, boxes)
    assert torch.equal(chosen[0], box)
    assert torch.equal(chosen[1], boxes[2])
    assert scores.tolist() == pytest.approx([0.9526, 0.7311], abs=1e-3)


def test_background_never_wins() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0], [2.0, 0.0, -9.0]])
    scores, classes, _ = BestClass()(logits, torch.rand(2, 4))
    assert classes.tolist() == [1, 0]
    assert scores[0] < 0.01 < scores[1]


def test_instances_are_in_pixels_of_the_original() -> None:
    found = to_instances(
        torch.tensor([0.9]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.5, 1.5]]), height=100, width=40
    )
    assert found.pred_boxes.tensor.tolist() == [[10.0, 0.0, 30.0, 100.0]]


def test_soft_nms_compares_what_lies_in_the_image() -> None:
    """The released code keeps one of this pair: the second is the first cut at the left border."""
    boxes = torch.tensor([[0.04, 0.5, 0.20, 0.3], [0.07, 0.5, 0.14, 0.3]])
    logits = torch.tensor([[2.0], [1.9]])
    scores, _, chosen = TopK(2, soft_nms_iou=0.8)(logits, boxes)
    assert torch.equal(chosen, boxes[:1])  # as given: what an image keeps of it is cut later
    assert scores.tolist() == pytest.approx([0.8808], abs=1e-4)
