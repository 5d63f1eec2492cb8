"""Selection of regions: deterministic, class-agnostic NMS, scores of table 2a."""

import pytest
import torch

from detclipv2.regions import objectness, select_regions


def _grid(n):
    start = torch.arange(n) * 20.0
    return torch.stack([start, start, start + 10, start + 10], dim=1)


def test_best_regions_first_and_overlaps_dropped():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10.0]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7])
    assert select_regions(boxes, scores, k=10).tolist() == [1, 3, 2]
    assert select_regions(boxes, scores, k=2).tolist() == [1, 3]
    assert select_regions(boxes, scores, k=10, nms_threshold=0.95).tolist() == [1, 3, 0, 2]


def test_candidates_bound_what_nms_sees():
    boxes, scores = _grid(6), torch.arange(6.0)
    assert select_regions(boxes, scores, k=6, candidates=2).tolist() == [5, 4]


def test_ties_go_to_the_lower_index_every_time():
    boxes, scores = _grid(50), torch.zeros(50)
    boxes[1] = boxes[0]  # the same box twice: the first stays
    chosen = select_regions(boxes, scores, k=5).tolist()
    assert chosen == [0, 2, 3, 4, 5]
    assert all(select_regions(boxes, scores, k=5).tolist() == chosen for _ in range(5))
    assert select_regions(boxes, scores, k=3, candidates=3).tolist() == [0, 2]


def test_permuted_boxes_give_the_same_regions():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 15], dim=1)
    scores = torch.rand(40, generator=generator)
    order = torch.randperm(40, generator=generator)
    assert order[select_regions(boxes[order], scores[order], k=8)].tolist() == select_regions(boxes, scores, 8).tolist()


def test_selection_takes_half_precision_and_no_boxes():
    assert select_regions(_grid(3).bfloat16(), torch.zeros(3).bfloat16(), k=2).tolist() == [0, 1]
    assert select_regions(torch.zeros(0, 4), torch.zeros(0), k=2).tolist() == []


def test_scores_of_the_ablation():
    similarity = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 3.0, -4.0]])
    quality = torch.tensor([2.0, -2.0])
    own = [0, 2]
    assert objectness("batch_text", similarity, own, quality).tolist() == [1.0, 3.0]
    assert objectness("own_text", similarity, own, quality).tolist() == [1.0, -1.0]
    assert objectness("centerness", similarity, own, quality).tolist() == [2.0, -2.0]
    both = objectness("batch_text_centerness", similarity, own, quality, bias=-1.0)
    torch.testing.assert_close(both, torch.tensor([0.0, 2.0]).sigmoid() * quality.sigmoid())


def test_scores_that_cannot_be_made():
    similarity = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="unknown objectness 'iou'"):
        objectness("iou", similarity, [0, 1, 2], None)
    with pytest.raises(ValueError, match="needs a head with centerness"):
        objectness("centerness", similarity, [0, 1, 2], None)
    with pytest.raises(ValueError, match="no concept"):
        objectness("own_text", similarity, [], None)
