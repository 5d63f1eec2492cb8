"""Float64 losses read off the papers, one anchor at a time, and random inputs."""

import math

import torch
from detectron2.structures import Boxes, Instances

from polydet.dense import DensePredictions


def random_boxes(count, size, generator, smallest=8.0):
    corner = torch.rand(count, 2, generator=generator) * (size - smallest)
    extent = smallest + torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corner, (corner + extent).clamp(max=size)], dim=1)


def instances(boxes, classes, size):
    result = Instances(size)
    result.gt_boxes = Boxes(boxes)
    result.gt_classes = classes
    return result


def pyramid(strides, channels, size, generator, batch=2):
    return [torch.randn(batch, channels, size // s, size // s, generator=generator) for s in strides]


def random_predictions(head, features, generator, spread=1.0):
    shapes = head(features)
    return DensePredictions(
        *[
            [spread * torch.randn(x.shape, generator=generator) for x in levels]
            for levels in (shapes.logits, shapes.deltas, shapes.quality)
        ]
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(x, target):
    return -(target * math.log(sigmoid(x)) + (1 - target) * math.log(1 - sigmoid(x)))


def focal(x, positive):
    p = sigmoid(x)
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def overlap(a, b):
    """IoU and GIoU."""
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union, inter / union - (hull - union) / hull


def centre(a):
    return (a[0] + a[2]) / 2, (a[1] + a[3]) / 2


def apply_deltas(a, d, weights):
    w, h = a[2] - a[0], a[3] - a[1]
    x, y = centre(a)
    x, y = x + d[0] / weights[0] * w, y + d[1] / weights[1] * h
    w, h = w * math.exp(d[2] / weights[2]), h * math.exp(d[3] / weights[3])
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def around(point, left, top, right, bottom):
    return point[0] - left, point[1] - top, point[0] + right, point[1] + bottom


def literal_centerness(point, box):
    lr = point[0] - box[0], box[2] - point[0]
    tb = point[1] - box[1], box[3] - point[1]
    return math.sqrt(min(lr) / max(lr) * min(tb) / max(tb))


def rows(predictions, anchors, targets):
    """Every anchor that is not ignored: label, logits, raw box, quality logit, anchor, assigned box."""
    logits = predictions.flat_logits().double().tolist()
    deltas = predictions.flat_deltas().double().tolist()
    quality = predictions.flat_quality()
    quality = None if quality is None else quality.double().tolist()
    flat = torch.cat(anchors).double().tolist()
    labels, boxes = targets.labels.tolist(), targets.boxes.double().tolist()
    for b in range(len(labels)):
        for i, label in enumerate(labels[b]):
            if label != -2:
                yield label, logits[b][i], deltas[b][i], quality and quality[b][i], flat[i], boxes[b][i]
