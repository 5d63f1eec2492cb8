"""ATSS against a literal reading of the paper in float64."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, Instances
from torch import nn

from polydet.dense import (
    BACKGROUND,
    IGNORED,
    ATSSHead,
    DensePredictions,
    OneStageDetector,
    atss_assign,
    centerness,
    inside_image,
)
from polydet.dense.postprocess import DenseInference

STRIDES = (8, 16, 32)


def random_boxes(count, size, generator, smallest=8.0):
    corner = torch.rand(count, 2, generator=generator) * (size - smallest)
    extent = smallest + torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corner, (corner + extent).clamp(max=size)], dim=1)


def instances(boxes, classes, size):
    result = Instances(size)
    result.gt_boxes = Boxes(boxes)
    result.gt_classes = classes
    return result


def literal_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def literal_atss(levels, gt_boxes, topk):
    """Algorithm 1, one box, one level, one anchor at a time."""
    anchors = [a for level in levels for a in level]
    result, best = [BACKGROUND] * len(anchors), [-1.0] * len(anchors)
    for g, box in enumerate(gt_boxes):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for level in levels:
            order = sorted(
                range(len(level)),
                key=lambda i: math.hypot((level[i][0] + level[i][2]) / 2 - cx, (level[i][1] + level[i][3]) / 2 - cy),
            )
            candidates += [start + i for i in order[:topk]]
            start += len(level)
        ious = [literal_iou(anchors[i], box) for i in candidates]
        mean = sum(ious) / len(ious)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in ious) / (len(ious) - 1))
        for i, iou in zip(candidates, ious):
            x, y = (anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if iou >= mean + deviation and inside and iou > best[i]:
                result[i], best[i] = g, iou
    return result


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_literal_algorithm(seed):
    generator = torch.Generator().manual_seed(seed)
    head = ATSSHead(32, 3, STRIDES, channels=32, anchor_offset=0.5)
    maps = [torch.zeros(1, 32, 128 // s, 128 // s) for s in STRIDES]
    anchors = head.anchors(maps)
    # irrational centres leave no ties in distance
    boxes = random_boxes(7, 128.0, generator)
    expected = literal_atss([a.double().tolist() for a in anchors], boxes.double().tolist(), 9)
    found = atss_assign(anchors, boxes, 9).tolist()
    assert found == expected
    assert len(set(found)) > 2


def test_assignment_edge_cases():
    anchors = [torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.zeros(0, 4)]
    assert atss_assign(anchors, torch.zeros(0, 4)).tolist() == [BACKGROUND]
    assert atss_assign(anchors, torch.tensor([[0.0, 0.0, 9.0, 9.0]])).tolist() == [0]
    assert atss_assign([torch.zeros(0, 4)], torch.tensor([[0.0, 0.0, 9.0, 9.0]])).numel() == 0


def test_centerness_is_one_at_centre_and_zero_outside():
    box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]).expand(3, 4)
    points = torch.tensor([[5.0, 10.0], [2.5, 10.0], [-1.0, 3.0]])
    torch.testing.assert_close(centerness(points, box), torch.tensor([1.0, math.sqrt(1 / 3), 0.0]))


def test_padding_is_ignored():
    head = ATSSHead(8, 2, (8,), channels=32, num_convs=1)
    features = [torch.randn(2, 8, 6, 6)]
    anchors = head.anchors(features)
    gt = [instances(torch.tensor([[4.0, 4.0, 30.0, 30.0]]), torch.tensor([1]), (48, 32)) for _ in range(2)]
    targets = head.assign(head(features), anchors, gt, [(48, 32), (48, 48)])
    outside = ~inside_image(anchors[0], (48, 32))
    assert outside.sum() == 12
    assert (targets.labels[0] == IGNORED).equal(outside)
    assert (targets.labels[1] != IGNORED).all()
    assert (targets.labels[0] == 1).any()


def literal_losses(logits, deltas, quality, anchors, labels, boxes, weights):
    """ATSS losses of the paper in float64, one anchor at a time."""
    cls = box_sum = ctr_sum = center_sum = 0.0
    positives = 0
    for b in range(len(labels)):
        for i in range(len(anchors)):
            label = labels[b][i]
            if label == IGNORED:
                continue
            for c, x in enumerate(logits[b][i]):
                p = 1 / (1 + math.exp(-x))
                cls += -0.25 * (1 - p) ** 2 * math.log(p) if c == label else -0.75 * p**2 * math.log(1 - p)
            if label < 0:
                continue
            positives += 1
            a, g, d = anchors[i], boxes[b][i], deltas[b][i]
            w, h = a[2] - a[0], a[3] - a[1]
            cx, cy = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
            px, py = cx + d[0] / 10 * w, cy + d[1] / 10 * h
            pw, ph = math.exp(d[2] / 5) * w, math.exp(d[3] / 5) * h
            p = (px - pw / 2, py - ph / 2, px + pw / 2, py + ph / 2)
            hull = (max(p[2], g[2]) - min(p[0], g[0])) * (max(p[3], g[3]) - min(p[1], g[1]))
            inter = max(0.0, min(p[2], g[2]) - max(p[0], g[0])) * max(0.0, min(p[3], g[3]) - max(p[1], g[1]))
            union = pw * ph + (g[2] - g[0]) * (g[3] - g[1]) - inter
            giou = inter / union - (hull - union) / hull
            lr, tb = (cx - g[0], g[2] - cx), (cy - g[1], g[3] - cy)
            center = math.sqrt(min(lr) / max(lr) * min(tb) / max(tb))
            box_sum += (1 - giou) * center
            center_sum += center
            q = 1 / (1 + math.exp(-quality[b][i]))
            ctr_sum -= center * math.log(q) + (1 - center) * math.log(1 - q)
    return {
        "loss_cls": weights[0] * cls / max(positives, 1),
        "loss_box": weights[1] * box_sum / max(center_sum, 1.0),
        "loss_quality": weights[2] * ctr_sum / max(positives, 1),
    }


def test_losses_equal_literal_float64():
    generator = torch.Generator().manual_seed(0)
    head = ATSSHead(16, 3, (8, 16), channels=32, num_convs=1, quality_weight=0.7, anchor_scale=3.0)
    features = [torch.randn(2, 16, 64 // s, 64 // s, generator=generator) for s in (8, 16)]
    predictions = head(features)
    predictions = DensePredictions(
        *[
            [torch.randn(x.shape, generator=generator) for x in level]
            for level in (predictions.logits, predictions.deltas, predictions.quality)
        ]
    )
    anchors = head.anchors(features)
    gt = [instances(random_boxes(n, 60.0, generator), torch.arange(n) % 3, (64, 60)) for n in (4, 2)]
    targets = head.assign(predictions, anchors, gt, [(64, 60), (60, 64)])
    assert targets.positive.sum() > 3
    found = head.losses(predictions, anchors, targets)
    expected = literal_losses(
        predictions.flat_logits().double().tolist(),
        predictions.flat_deltas().double().tolist(),
        predictions.flat_quality().double().tolist(),
        torch.cat(anchors).double().tolist(),
        targets.labels.tolist(),
        targets.boxes.double().tolist(),
        (1.0, 2.0, 0.7),
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


class Plain(Backbone):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.down = nn.Conv2d(16, 16, 2, stride=2)

    @property
    def size_divisibility(self):
        return 16

    def forward(self, x):
        first = self.stem(x)
        return {"p3": first, "p4": self.down(first)}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=16, stride=8), "p4": ShapeSpec(channels=16, stride=16)}


def detector(num_convs=1):
    torch.manual_seed(0)
    head = ATSSHead(16, 2, (8, 16), channels=32, num_convs=num_convs, inference=DenseInference(0.0), anchor_scale=4.0)
    return OneStageDetector(Plain(), head)


@pytest.mark.parametrize("num_convs", [1, 4])
def test_detector_learns_one_image(num_convs):
    model = detector(num_convs)
    image = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    image[:, 8:40, 16:48] = 250
    gt = instances(torch.tensor([[16.0, 8.0, 48.0, 40.0]]), torch.tensor([1]), (64, 64))
    empty = instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (48, 56))
    batch = [
        {"image": image, "instances": gt, "height": 128, "width": 64},
        {"image": torch.zeros(3, 48, 56, dtype=torch.uint8), "instances": empty, "height": 48, "width": 56},
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(80):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = [x["instances"] for x in model(batch)]
    assert found[0].pred_classes[0] == 1
    # the output has twice the height of the network's input
    torch.testing.assert_close(found[0].pred_boxes.tensor[0], torch.tensor([16.0, 16.0, 48.0, 80.0]), atol=8.0, rtol=0)
    assert found[1].scores.max() < found[0].scores[0] / 2
    assert len(found[1]) <= 100


def test_losses_without_objects_are_finite_and_reach_every_parameter():
    model = detector()
    empty = instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([{"image": torch.zeros(3, 32, 32), "instances": empty}])
    assert losses["loss_box"] == 0 and losses["loss_quality"] == 0 and losses["loss_cls"] > 0
    assert all(x.dtype == torch.float32 for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wrong_number_of_levels_is_refused():
    head = ATSSHead(16, 2, (8, 16), channels=32)
    with pytest.raises(ValueError, match="1 feature levels .* strides"):
        head([torch.zeros(1, 16, 4, 4)])


def test_region_features_can_replace_logits():
    """A class predictor with any output size, and logits computed outside, train and infer."""
    head = ATSSHead(16, 24, (8,), channels=32, num_convs=1)
    features = [torch.randn(1, 16, 8, 8)]
    texts = torch.randn(5, 24)
    raw = head(features)
    predictions = DensePredictions([x @ texts.T for x in raw.logits], raw.deltas, raw.quality)
    gt = [instances(torch.tensor([[0.0, 0.0, 60.0, 60.0]]), torch.tensor([4]), (64, 64))]
    anchors = head.anchors(features)
    losses = head.losses(predictions, anchors, head.assign(predictions, anchors, gt, [(64, 64)]))
    sum(losses.values()).backward()
    assert head.class_predictor.weight.grad.abs().sum() > 0
    assert set(head.inference(predictions, anchors, [(64, 64)])[0].pred_classes.tolist()) <= set(range(5))
