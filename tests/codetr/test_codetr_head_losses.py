"""Losses of the auxiliary heads against literal float64 versions."""

import math

import pytest
import torch
from codetr_literal import (
    apply_deltas,
    around,
    bce,
    centre,
    focal,
    instances,
    literal_centerness,
    overlap,
    pyramid,
    random_boxes,
    random_predictions,
    rows,
    sigmoid,
)
from detectron2.structures import BitMasks

from codetr.heads import build_head

STRIDES = (8, 16, 32)


def trained(name, seed=0, **kwargs):
    """A head's losses on random predictions and the rows they were computed from."""
    generator = torch.Generator().manual_seed(seed)
    head = build_head(name, 16, 3, STRIDES, channels=32, **kwargs).head
    features = pyramid(STRIDES, 16, 128, generator)
    predictions = random_predictions(head, features, generator, 0.5)
    gt = [instances(random_boxes(n, 120.0, generator, 24.0), torch.arange(n) % 3, (128, 120)) for n in (3, 2)]
    anchors = head.anchors(features)
    targets = head.assign(predictions, anchors, gt, [(128, 120), (120, 128)])
    assert targets.positive.sum() > 3
    return head.losses(predictions, anchors, targets), list(rows(predictions, anchors, targets))


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=2e-5), name


def focal_sum(data):
    return sum(focal(x, c == label) for label, logits, *_ in data for c, x in enumerate(logits))


def positives(data):
    return [row for row in data if row[0] >= 0]


def test_retinanet():
    found, data = trained("retinanet")
    good = positives(data)
    giou = sum(1 - overlap(apply_deltas(a, d, (1, 1, 1, 1)), g)[1] for _, _, d, _, a, g in good)
    check(found, {"loss_cls": focal_sum(data) / len(good), "loss_box": 2 * giou / len(good)})


def test_fcos():
    found, data = trained("fcos")
    good = positives(data)
    box = quality = total = 0.0
    for _, _, d, q, a, g in good:
        stride = (a[2] - a[0]) / 8
        weight = literal_centerness(centre(a), g)
        predicted = around(centre(a), *[math.exp(x) * stride for x in d])
        box += weight * (1 - overlap(predicted, g)[1])
        quality += bce(q, weight)
        total += weight
    check(
        found,
        {
            "loss_cls": focal_sum(data) / len(good),
            "loss_box": box / max(total, 1.0),
            "loss_quality": quality / len(good),
        },
    )


def test_paa():
    found, data = trained("paa")
    good = positives(data)
    box = quality = total = 0.0
    for _, _, d, q, a, g in good:
        iou, giou = overlap(apply_deltas(a, d, (10, 10, 5, 5)), g)
        box += iou * (1 - giou)
        quality += bce(q, iou)
        total += iou
    check(
        found,
        {
            "loss_cls": focal_sum(data) / len(good),
            "loss_box": 1.3 * box / max(total, 1.0),
            "loss_quality": 0.5 * quality / len(good),
        },
    )


def test_gfl():
    found, data = trained("gfl")
    good = positives(data)
    cls = box = dfl = total = 0.0
    for label, logits, d, _, a, g in data:
        iou = 0.0
        if label >= 0:
            stride = (a[2] - a[0]) / 8
            x, y = centre(a)
            sides, distributions = [], []
            for k in range(4):
                raw = d[17 * k : 17 * k + 17]
                norm = sum(math.exp(r) for r in raw)
                distributions.append([math.exp(r) / norm for r in raw])
                sides.append(sum(i * p for i, p in enumerate(distributions[-1])) * stride)
            iou, giou = overlap(around((x, y), *sides), g)
            weight = max(sigmoid(v) for v in logits)
            box += weight * (1 - giou)
            total += weight
            for p, distance in zip(distributions, (x - g[0], y - g[1], g[2] - x, g[3] - y)):
                t = min(distance / stride, 16 - 0.01)
                low = int(t)
                part = (low + 1 - t) * math.log(p[low]) + (t - low) * math.log(p[low + 1])
                dfl -= weight * part / 4
        for c, v in enumerate(logits):
            target = iou if c == label else 0.0
            cls += abs(target - sigmoid(v)) ** 2 * bce(v, target)
    total = max(total, 1.0)
    check(
        found,
        {
            "loss_cls": cls / len(good),
            "loss_box": 2 * box / total,
            "loss_distribution": 0.25 * dfl / total,
        },
    )


def rcnn_batch(generator, with_mask=False):
    gt = [instances(random_boxes(n, 128.0, generator, 24.0), torch.arange(n) % 3, (128, 128)) for n in (2, 0)]
    if with_mask:
        for target in gt:
            masks = torch.zeros(len(target), 128, 128, dtype=torch.bool)
            for mask, box in zip(masks, target.gt_boxes.tensor.long().tolist()):
                mask[box[1] : box[3], box[0] : box[2]] = True
            target.gt_masks = BitMasks(masks)
    return pyramid((8, 16, 32), 16, 128, generator), gt


def test_rcnn_second_stage_equals_literal():
    """Cross entropy over all RoIs; ten times GIoU of the class's decoded box, by the number of RoIs."""
    generator = torch.Generator().manual_seed(1)
    features, gt = rcnn_batch(generator)
    head = build_head("faster_rcnn", 16, 3, (8, 16, 32), fc_dims=(32,))
    torch.nn.init.normal_(head.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    seen = {}
    predictor = head.roi_heads.box_predictor
    original = predictor.losses
    predictor.losses = lambda p, s: seen.update(predictions=p, samples=s) or original(p, s)
    losses, coordinates = head(features, gt, [(128, 128)] * 2)
    logits, deltas = (x.double().tolist() for x in seen["predictions"])
    ce = box = 0.0
    row = 0
    for c in coordinates:
        for roi, label, target in zip(c.boxes.double().tolist(), c.labels.tolist(), c.targets.double().tolist()):
            index = 3 if label < 0 else label
            ce += math.log(sum(math.exp(x) for x in logits[row])) - logits[row][index]
            if label >= 0:
                decoded = apply_deltas(roi, deltas[row][4 * label : 4 * label + 4], (10, 10, 5, 5))
                box += 1 - overlap(decoded, target)[1]
            row += 1
    assert row == len(logits) <= 1024
    assert losses["loss_cls"].item() == pytest.approx(ce / row, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(10 * box / row, rel=1e-4)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def test_rcnn_coordinates_hold_ground_truth_and_pooled_features():
    generator = torch.Generator().manual_seed(2)
    features, gt = rcnn_batch(generator)
    features = [x.requires_grad_() for x in features]
    head = build_head("faster_rcnn", 16, 3, (8, 16, 32), fc_dims=(32,))
    _, coordinates = head(features, gt, [(128, 128)] * 2)
    full, empty = coordinates
    for box, label in zip(gt[0].gt_boxes.tensor, gt[0].gt_classes):
        same = (full.boxes == box).all(dim=1)
        assert same.any()
        assert full.labels[same][0] == label
    assert len(full.positives) <= 128
    assert len(full.features) == len(full.boxes) and full.features.shape[1] == 16
    assert len(empty.positives) == 0 < len(empty.negatives)
    full.features.sum().backward()
    assert features[0].grad.abs().sum() > 0


def test_mask_rcnn_needs_and_uses_masks():
    generator = torch.Generator().manual_seed(3)
    head = build_head("mask_rcnn", 16, 3, (8, 16, 32), fc_dims=(32,))
    features, gt = rcnn_batch(generator)
    with pytest.raises(ValueError, match="mask_rcnn head needs gt_masks.*faster_rcnn"):
        head(features, gt, [(128, 128)] * 2)
    features, gt = rcnn_batch(generator, with_mask=True)
    losses, _ = head(features, gt, [(128, 128)] * 2)
    assert losses["loss_mask"].item() == pytest.approx(math.log(2), abs=0.05)  # sigmoid(0) everywhere
    head.eval()
    found = head.inference(features, [(128, 128)] * 2)
    assert len(found) == 2 and found[0].pred_boxes.tensor.shape[1] == 4


@pytest.mark.parametrize("name", ["atss", "retinanet", "fcos", "paa", "gfl", "faster_rcnn"])
def test_images_without_objects(name):
    """No positives: finite losses that reach every parameter, no positive coordinates, inference runs."""
    kwargs = {"fc_dims": (32,)} if name == "faster_rcnn" else {"channels": 32}
    head = build_head(name, 16, 3, STRIDES, **kwargs)
    features = pyramid(STRIDES, 16, 64, torch.Generator().manual_seed(0))
    gt = [instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (64, 64)) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        losses, coordinates = head(features, gt, [(64, 64)] * 2)
    assert all(len(c.positives) == 0 for c in coordinates)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    missing = [n for n, p in head.named_parameters() if p.grad is None]
    assert not missing
    head.eval()
    with torch.no_grad():
        assert all(x.pred_boxes.tensor.isfinite().all() for x in head.inference(features, [(64, 64), (64, 40)]))


@pytest.mark.parametrize("name", ["atss", "faster_rcnn"])
def test_class_score_is_the_positives_logit(name):
    kwargs = {"fc_dims": (32,)} if name == "faster_rcnn" else {"channels": 32}
    head = build_head(name, 16, 3, STRIDES, **kwargs)
    generator = torch.Generator().manual_seed(0)
    features = [x.requires_grad_() for x in pyramid(STRIDES, 16, 128, generator)]
    gt = [instances(random_boxes(n, 128.0, generator, 24.0), torch.arange(n) % 3, (128, 128)) for n in (3, 2)]
    _, coordinates = head(features, gt, [(128, 128)] * 2)
    score = head.class_score(features, coordinates)
    assert score.shape == (2,)
    score.sum().backward()
    assert sum(x.grad.abs().sum() for x in features[:-1]) > 0
    count = torch.tensor([float(len(c.positives)) for c in coordinates])
    if name == "atss":  # untrained: every logit is near the prior
        torch.testing.assert_close(score / count, torch.full((2,), -math.log(99)), atol=0.3, rtol=0)
