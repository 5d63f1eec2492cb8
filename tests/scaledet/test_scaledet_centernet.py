import math

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances

from scaledet.centernet import CenterNetHead, CenterNetProposals, heatmap_focal_loss, ltrb_giou_loss
from scaledet.centernet_targets import Cells, centernet_targets

SHAPES = [(20, 26), (10, 13), (5, 7), (3, 4), (2, 2)]
STRIDES = [8, 16, 32, 64, 128]
SIZES = [(0, 80), (64, 160), (128, 320), (256, 640), (512, math.inf)]
BOXES = {
    "none": [],
    "one": [(30, 40, 90, 70)],
    "two levels": [(0, 0, 110, 100)],
    "same centre": [(20, 20, 60, 60), (30, 30, 50, 50)],
    "tiny": [(50.2, 60.1, 50.9, 61.3)],
    "crowd": [
        (3, 5, 40, 33),
        (10, 8, 60, 50),
        (12, 9, 58, 44),
        (100, 20, 180, 150),
        (5, 5, 205, 158),
        (64, 64, 80, 80),
    ],
    "at the border": [(190, 140, 208, 160), (0, 0, 9, 7)],
}


def slow_targets(boxes):
    """The target rules of CenterNet2 cell by cell and object by object, in Python."""
    heatmap, positives, regression, cell = [], [], {}, 0
    for level, ((height, width), stride) in enumerate(zip(SHAPES, STRIDES)):
        for row in range(height):
            for column in range(width):
                x, y = column * stride + stride // 2, row * stride + stride // 2
                best, nearest = 0.0, math.inf
                for x0, y0, x1, y1 in boxes:
                    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
                    at_centre = (math.floor(cx / stride), math.floor(cy / stride)) == (column, row)
                    square = 0.0 if at_centre else (x - cx) ** 2 + (y - cy) ** 2
                    distance = square / max(2 * (1 / 9) ** 2 * (x1 - x0) * (y1 - y0), 16.0)
                    value = math.exp(-distance)
                    best = max(best, value if value >= 1e-4 else 0.0)
                    half = math.hypot(x1 - x0, y1 - y0) / 2
                    cared = SIZES[level][0] <= half <= SIZES[level][1]
                    if cared and at_centre:
                        positives.append(cell)
                    near = abs(math.floor(cx / stride) - column) <= 1 and abs(math.floor(cy / stride) - row) <= 1
                    distances = (x - x0, y - y0, x1 - x, y1 - y)
                    if cared and near and min(distances) > 0 and distance < nearest:
                        nearest = distance
                        regression[cell] = [d / stride for d in distances]
                heatmap.append(best)
                cell += 1
    return heatmap, sorted(positives), regression


@pytest.mark.parametrize("name", BOXES)
def test_targets_equal_the_slow_loop(name):
    boxes = torch.tensor(BOXES[name], dtype=torch.float32).view(-1, 4)
    cells = Cells.build(SHAPES, STRIDES, torch.device("cpu"))
    targets = centernet_targets(boxes, cells, torch.tensor(SIZES))
    heatmap, positives, regression = slow_targets(BOXES[name])
    torch.testing.assert_close(targets.heatmap, torch.tensor(heatmap), rtol=1e-5, atol=1e-6)
    assert sorted(targets.positives.tolist()) == positives
    assert targets.box_cells.tolist() == sorted(regression)
    expected = torch.tensor([regression[c] for c in sorted(regression)], dtype=torch.float32).view(-1, 4)
    torch.testing.assert_close(targets.boxes, expected)


def test_a_box_of_the_overlap_is_positive_on_two_levels():
    cells = Cells.build(SHAPES, STRIDES, torch.device("cpu"))
    boxes = torch.tensor([[0.0, 0.0, 110.0, 100.0]])  # half diagonal 74.3
    positives = centernet_targets(boxes, cells, torch.tensor(SIZES)).positives
    assert cells.level[positives].tolist() == [0, 1]


def test_focal_loss_equals_its_formula():
    torch.manual_seed(0)
    logits = (torch.randn(50, dtype=torch.float64) * 3).requires_grad_()
    heatmap, positives = torch.rand(50, dtype=torch.float64), torch.tensor([3, 3, 17])
    positive, negative = heatmap_focal_loss(logits, heatmap, positives)
    p = [min(max(1 / (1 + math.exp(-z)), 1e-4), 1 - 1e-4) for z in logits.tolist()]
    expected = sum(-0.25 * math.log(p[i]) * (1 - p[i]) ** 2 for i in positives.tolist())
    assert positive.item() == pytest.approx(expected)
    expected = 0.0
    for q, t in zip(p, heatmap.tolist()):
        if q < 0.85:
            expected += -0.75 * math.log(1 - q) * q**2 * (1 - t) ** 4
    assert negative.item() == pytest.approx(expected)
    (positive + negative).backward()
    unsure = [i for i, q in enumerate(p) if q >= 0.85 and i not in (3, 17)]
    assert unsure and logits.grad[unsure].eq(0).all()


def test_giou_loss_equals_its_formula():
    predicted = torch.tensor([[2.0, 1.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    target = torch.tensor([[1.0, 2.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    # first: 5x5 and 6x3 boxes, intersection 4x2, hull 7x6; second: a point in a 2x2 box; third: equal
    expected = [1 - (8 + 1) / (35 + 1) + (42 - 35) / 42, 1 - 1 / 5, 0.0]
    torch.testing.assert_close(ltrb_giou_loss(predicted, target), torch.tensor(expected))


def generator(**kwargs):
    torch.manual_seed(0)
    return CenterNetProposals(CenterNetHead(16, 5, 1, norm=""), **kwargs)


def features(batch=2):
    torch.manual_seed(1)
    return {f"p{i + 3}": torch.randn(batch, 16, h, w) for i, (h, w) in enumerate(SHAPES)}


def truth(*images):
    return [
        Instances((160, 208), gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))) for boxes in images
    ]


IMAGES = ImageList(torch.zeros(2, 3, 160, 208), [(160, 208)] * 2)


def test_initial_heads():
    head = CenterNetHead(64, 5, 4)
    assert sum(isinstance(m, torch.nn.GroupNorm) for m in head.tower) == 4
    assert all(m.num_groups == 32 for m in head.tower if isinstance(m, torch.nn.GroupNorm))
    assert head.heatmap.bias.item() == pytest.approx(-math.log(99))
    assert head.box.bias.tolist() == [8.0] * 4 and head.scales.tolist() == [1.0] * 5
    assert head.tower[0].weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_losses_equal_their_parts():
    model = generator()
    model.train()
    _, losses = model(IMAGES, features(), truth(BOXES["crowd"], BOXES["one"]))
    logits, boxes = model.head(list(features().values()))
    positive = negative = regression = 0.0
    num_positives = num_boxes = 0
    for i, name in enumerate(("crowd", "one")):
        heatmap, positives, targets = slow_targets(BOXES[name])
        pos, neg = heatmap_focal_loss(logits[i], torch.tensor(heatmap), torch.tensor(positives))
        positive, negative, num_positives = positive + pos, negative + neg, num_positives + len(positives)
        cells = sorted(targets)
        regression = regression + ltrb_giou_loss(boxes[i][cells], torch.tensor([targets[c] for c in cells])).sum()
        num_boxes += len(cells)
    torch.testing.assert_close(losses["loss_centernet_pos"], 0.5 * positive / num_positives)
    torch.testing.assert_close(losses["loss_centernet_neg"], 0.5 * negative / num_positives)
    torch.testing.assert_close(losses["loss_centernet_box"], regression / num_boxes)


def test_empty_ground_truth_keeps_the_graph():
    model = generator()
    model.train()
    proposals, losses = model(IMAGES, features(), truth([], []))
    assert losses["loss_centernet_pos"] == 0 and losses["loss_centernet_box"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert len(proposals) == 2


def test_proposals_are_decoded_boxes_with_root_scores():
    model = generator(nms_thresh=0.9)
    model.eval()
    cells = Cells.build(SHAPES, STRIDES, torch.device("cpu"))
    logits = torch.full((1, len(cells.level)), -20.0)  # below the score threshold
    boxes = torch.zeros(1, len(cells.level), 4)
    logits[0, 30], boxes[0, 30] = 1.0, torch.tensor([0.5, 1.0, 1.5, 2.0])  # column 4, row 1 of P3
    level1 = SHAPES[0][0] * SHAPES[0][1]
    logits[0, level1 + 20], boxes[0, level1 + 20] = 0.0, torch.tensor([0.0, 0.0, 0.0, 0.0])  # column 7, row 1 of P4
    (found,) = model.proposals(logits, boxes, cells, [(160, 208)])
    expected = [[36 - 4, 12 - 8, 36 + 12, 12 + 16], [120, 24, 120.01, 24.01]]
    torch.testing.assert_close(found.proposal_boxes.tensor, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(found.objectness_logits, torch.tensor([1.0, 0.0]).sigmoid().sqrt())


def test_proposals_are_bounded_per_level_and_image_and_suppressed_over_levels():
    model = generator(pre_nms_topk=(7, 5), post_nms_topk=(20, 6))
    cells = Cells.build(SHAPES, STRIDES, torch.device("cpu"))
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, len(cells.level)), torch.rand(2, len(cells.level), 4) * 3
    for mode, per_image in ((True, 20), (False, 6)):
        model.train(mode)
        for found in model.proposals(logits, boxes, cells, [(160, 208)] * 2):
            assert len(found) == per_image
            assert (found.objectness_logits.diff() <= 0).all()
    model.eval()
    # the same box from two levels: one survives
    logits, boxes = torch.full((1, len(cells.level)), -20.0), torch.zeros(1, len(cells.level), 4)
    second = SHAPES[0][0] * SHAPES[0][1]
    for cell, stride in ((0, 8), (second, 16)):
        logits[0, cell] = 2.0
        x, y = cells.centres[cell]
        boxes[0, cell] = torch.stack([x, y, 40 - x, 40 - y]) / stride
    assert len(model.proposals(logits, boxes, cells, [(160, 208)])[0]) == 1


def test_proposals_drop_what_is_not_finite():
    model = generator()
    model.eval()
    cells = Cells.build(SHAPES, STRIDES, torch.device("cpu"))
    logits, boxes = torch.full((1, len(cells.level)), torch.nan), torch.full((1, len(cells.level), 4), torch.inf)
    assert len(model.proposals(logits, boxes, cells, [(160, 208)])[0]) == 0


def test_levels_must_agree():
    with pytest.raises(ValueError, match="levels"):
        generator(strides=(8, 16))
