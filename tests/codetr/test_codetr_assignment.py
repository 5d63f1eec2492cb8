"""Assignments of the auxiliary heads against independent implementations."""

import math

import numpy as np
import pytest
import torch
from codetr_literal import instances, pyramid, random_boxes, random_predictions
from detectron2.structures import Boxes
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.models.detection.fcos import FCOS as TorchvisionFCOS
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from codetr.heads import HEADS, build_head, fcos_assign, iou_assign, paa_assign
from codetr.heads.paa import separate
from codetr.heads.rcnn import build_rpn
from polydet.dense import BACKGROUND, IGNORED

STRIDES = (8, 16, 32, 64, 128)


@pytest.mark.parametrize("seed", range(5))
def test_fcos_equals_torchvision(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(12, 512.0, generator)
    anchors = []
    for stride in STRIDES:
        y, x = torch.meshgrid(*[torch.arange(512 // stride) * stride + stride / 2] * 2, indexing="ij")
        points = torch.stack([x, y], dim=-1).reshape(-1, 2)
        anchors.append(torch.cat([points - stride / 2, points + stride / 2], dim=1))

    class Recorder:
        center_sampling_radius = 1.5

        @property
        def head(self):
            return self

        def compute_loss(self, targets, outputs, anchors, matched):
            return matched[0]

    expected = TorchvisionFCOS.compute_loss(
        Recorder(), [{"boxes": boxes}], {}, [torch.cat(anchors)], [len(a) for a in anchors]
    )
    found = fcos_assign([(a[:, :2] + a[:, 2:]) / 2 for a in anchors], STRIDES, boxes)
    assert found.equal(expected)
    assert (found >= 0).sum() > 10


@pytest.mark.parametrize("seed", range(5))
def test_retinanet_equals_torchvision(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat([random_boxes(400, 256.0, generator), torch.zeros(0, 4)])
    boxes = random_boxes(6, 256.0, generator)
    expected = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    found = iou_assign(anchors, boxes)
    assert found.equal(expected)
    assert {BACKGROUND, IGNORED} < set(found.tolist())
    assert iou_assign(anchors, torch.zeros(0, 4)).unique().tolist() == [BACKGROUND]


@pytest.mark.parametrize("seed", range(3))
def test_rpn_labels_equal_torchvision(seed):
    """Before sampling, without padding and floor, our RPN labels like torchvision's."""
    generator = torch.Generator().manual_seed(seed)
    rpn = build_rpn(8, (16, 32), min_quality=0.0)
    rpn._subsample_labels = lambda label: label
    features = [f[..., :8, :8] for f in pyramid((16, 32), 8, 128, generator)]
    anchors = rpn.anchor_generator(features)
    boxes = random_boxes(4, 128.0, generator)
    labels, matched = rpn.label_and_sample_anchors(anchors, [instances(boxes, torch.zeros(4).long(), (128, 128))])
    reference = RegionProposalNetwork(None, torch.nn.Identity(), 0.7, 0.3, 256, 0.5, {}, {}, 0.7)
    expected, expected_boxes = reference.assign_targets_to_anchors([Boxes.cat(anchors).tensor], [{"boxes": boxes}])
    assert labels[0].float().equal(expected[0])
    positive = labels[0] == 1
    assert positive.sum() >= 4
    quality = box_iou(boxes, Boxes.cat(anchors).tensor)
    best = (quality == quality.max(dim=1, keepdim=True).values).any(
        0
    )  # these answer for the object whose best they are
    assert matched[0][positive & ~best].equal(expected_boxes[0][positive & ~best])


def literal_mixture(values):
    """Expectation maximisation of two one-dimensional Gaussians from the smallest and the largest loss."""
    mean, var, weight = np.array([values[0], values[-1]]), np.ones(2), np.full(2, 0.5)
    previous = -np.inf
    for _ in range(100):
        density = weight * np.exp(-((values[:, None] - mean) ** 2) / (2 * var)) / np.sqrt(2 * math.pi * var)
        likelihood = np.log(density.sum(1)).mean()
        part = density / density.sum(1, keepdims=True)
        total = part.sum(0) + 10 * np.finfo(float).eps
        mean = (part * values[:, None]).sum(0) / total
        var = (part * (values[:, None] - mean) ** 2).sum(0) / total + 1e-6
        weight = total / total.sum()
        if abs(likelihood - previous) < 1e-3:
            break
        previous = likelihood
    density = weight * np.exp(-((values[:, None] - mean) ** 2) / (2 * var)) / np.sqrt(2 * math.pi * var)
    return density.argmax(1), density.sum(1)


@pytest.mark.parametrize("seed", range(8))
def test_paa_equals_literal_mixture(seed):
    generator = torch.Generator().manual_seed(seed)
    level_sizes, num_gt = (60, 30, 12), 3
    candidates = torch.randint(-1, num_gt, (sum(level_sizes),), generator=generator)
    losses = torch.rand(len(candidates), generator=generator) * 2 + 1.5 * (torch.rand(102, generator=generator) > 0.4)
    expected = torch.full_like(candidates, BACKGROUND)
    for target in range(num_gt):
        kept, start = [], 0
        for size in level_sizes:
            mine = [i for i in range(start, start + size) if candidates[i] == target]
            kept += sorted(mine, key=lambda i: losses[i].item())[:9]
            start += size
        kept.sort(key=lambda i: losses[i].item())
        values = np.array([losses[i].item() for i in kept])
        component, density = literal_mixture(values)
        low = [k for k in range(len(kept)) if component[k] == 0]
        if low:
            peak = max(low, key=lambda k: density[k])
            expected[[kept[k] for k in low if values[k] <= values[peak]]] = target
    assert paa_assign(candidates, losses, level_sizes, num_gt).equal(expected)


def test_paa_with_few_candidates():
    assert separate(np.array([])).tolist() == []
    assert separate(np.array([0.7])).tolist() == [0]
    found = paa_assign(torch.tensor([0, -1, -1]), torch.rand(3), (2, 1), 2)
    assert found.tolist() == [0, BACKGROUND, BACKGROUND]


@pytest.mark.parametrize("name", ["atss", "retinanet", "fcos", "paa", "gfl"])
def test_dense_coordinates_are_positive_anchors_with_their_token(name):
    generator = torch.Generator().manual_seed(0)
    strides = (8, 16, 32)
    head = build_head(name, 32, 3, strides, channels=32)
    features = pyramid(strides, 32, 128, generator)
    gt = [instances(random_boxes(n, 128.0, generator, 24.0), torch.arange(n) % 3, (128, 128)) for n in (3, 2)]
    torch.manual_seed(0)
    predictions = random_predictions(head.head, features, generator, 0.1)
    head.head.forward = lambda _: predictions
    _, coordinates = head(features, gt, [(128, 128)] * 2)
    for image, (c, target) in enumerate(zip(coordinates, gt)):
        assert len(c.positives) > 0
        assert len(c.negatives) > 0
        boxes = target.gt_boxes.tensor
        for i in c.positives.tolist():
            index = (boxes - c.targets[i]).abs().sum(1).argmin()
            assert c.targets[i].equal(boxes[index])
            assert c.labels[i] == target.gt_classes[index]
            centre = (c.boxes[i, :2] + c.boxes[i, 2:]) / 2
            cell = c.feature_index[i]
            level = int(torch.bucketize(cell, torch.tensor([255, 255 + 64])))
            start = (0, 256, 256 + 64)[level]
            width = features[level].shape[-1]
            y, x = (cell - start) // width, (cell - start) % width
            assert ((centre / strides[level] + 1e-3).floor() - torch.stack([x, y])).abs().max() == 0
            assert c.features[cell].equal(features[level][image, :, y, x])


def test_unknown_head_is_refused_with_the_names():
    with pytest.raises(ValueError, match="unknown auxiliary head 'yolo'.*atss, faster_rcnn"):
        build_head("yolo", 32, 3, (8,))
    assert set(HEADS) == {"atss", "faster_rcnn", "mask_rcnn", "retinanet", "fcos", "paa", "gfl"}
