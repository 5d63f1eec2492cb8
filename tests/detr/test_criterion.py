"""The criterion against a literal version that walks over pairs in float64."""

import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from polydet.detr import (
    Assignment,
    Branch,
    ClassLoss,
    Criterion,
    FocalLoss,
    HungarianMatcher,
    Predictions,
    QualityFocalLoss,
    SoftmaxLoss,
    Targets,
)

from .test_matcher import problem


def xyxy(box: torch.Tensor) -> torch.Tensor:
    return box_convert(box[None], "cxcywh", "xyxy")


def literal(
    predictions: Predictions, targets: list[Targets], pairs: dict, kind: str, normalizer: float
) -> dict[str, list[float]]:
    """Losses of each layer; `pairs` maps (layer, image, query) to the index of the object."""
    losses: dict[str, list[float]] = {"class": [], "bbox": [], "giou": []}
    layers, batch, queries, classes = predictions.logits.shape
    for layer in range(layers):
        class_loss = bbox = giou_loss = weights = 0.0
        for image in range(batch):
            for query in range(queries):
                logits, box = predictions.logits[layer, image, query], predictions.boxes[layer, image, query]
                t = pairs.get((layer, image, query))
                label = None if t is None else int(targets[image].labels[t])
                quality = 0.0
                if t is not None:
                    target = targets[image].boxes[t]
                    bbox += float((box - target).abs().sum())
                    giou_loss += 1 - float(generalized_box_iou(xyxy(box), xyxy(target)))
                    low = torch.maximum(xyxy(box)[0, :2], xyxy(target)[0, :2])
                    high = torch.minimum(xyxy(box)[0, 2:], xyxy(target)[0, 2:])
                    inter = float((high - low).clamp(min=0).prod())
                    quality = inter / (float(box[2:].prod()) + float(target[2:].prod()) - inter)
                if kind == "softmax":
                    weight = 0.1 if label is None else 1.0
                    log_p = torch.log_softmax(logits, -1)
                    class_loss -= weight * float(log_p[classes - 1 if label is None else label])
                    weights += weight
                    continue
                for c in range(classes):
                    p = 1 / (1 + math.exp(-float(logits[c])))
                    if kind == "focal" and c == label:
                        class_loss -= 0.25 * (1 - p) ** 2 * math.log(p)
                    elif kind == "focal":
                        class_loss -= 0.75 * p**2 * math.log(1 - p)
                    else:
                        q = quality if c == label else 0.0
                        class_loss -= abs(q - p) ** 2 * (q * math.log(p) + (1 - q) * math.log(1 - p))
        losses["class"].append(class_loss / (weights if kind == "softmax" else normalizer))
        losses["bbox"].append(bbox / normalizer)
        losses["giou"].append(giou_loss / normalizer)
    return losses


LOSSES: dict[str, tuple[ClassLoss, str]] = {
    "focal": (FocalLoss(), "focal"),
    "qfl": (QualityFocalLoss(), "focal"),
    "softmax": (SoftmaxLoss(), "softmax"),
}


@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0], [9]], ids=str)
def test_matched_branch_equals_the_literal_version(kind: str, counts: list[int]) -> None:
    class_loss, cost = LOSSES[kind]
    predictions, targets = problem(2, 7, counts, 5, 3)
    if kind == "softmax":
        for t in targets:
            t.labels = t.labels.clamp(max=3)
    matcher = HungarianMatcher(cost)
    criterion = Criterion(matcher, class_loss, 1.5, 5.0, 2.0)
    found = criterion(Branch(predictions, targets))
    assignment = matcher(predictions, targets)
    pairs = {
        (int(a), int(b), int(q)): int(t)
        for a, b, q, t in zip(assignment.layer, assignment.image, assignment.query, assignment.target)
    }
    expected = literal(predictions, targets, pairs, kind, max(sum(counts), 1))
    for name, weight in (("class", 1.5), ("bbox", 5.0), ("giou", 2.0)):
        assert found[f"loss_{name}_0"].item() == pytest.approx(weight * expected[name][0], abs=1e-9)
        assert found[f"loss_{name}"].item() == pytest.approx(weight * expected[name][1], abs=1e-9)
    assert len(found) == 6


def test_assignment_made_beforehand_names_weights_and_normaliser() -> None:
    predictions, targets = problem(2, 7, [3, 1], 5, 3)
    pairs = {(0, 2): 1, (0, 5): 0, (1, 0): 0}
    image, query, target = (torch.tensor(x) for x in zip(*[(b, q, t) for (b, q), t in pairs.items()]))
    assignment = Assignment.same_for_layers(2, image, query, target)
    criterion = Criterion(HungarianMatcher(), FocalLoss(), branch_weight={"dn": 0.5})
    found = criterion(Branch(predictions, targets, "dn", assignment))
    all_pairs = {(layer, b, q): t for layer in range(2) for (b, q), t in pairs.items()}
    expected = literal(predictions, targets, all_pairs, "focal", 3)
    assert found["loss_class_dn_0"].item() == pytest.approx(0.5 * expected["class"][0])
    assert found["loss_bbox_dn"].item() == pytest.approx(0.5 * 5 * expected["bbox"][1])
    other = criterion(Branch(predictions, targets, "dn", assignment, normalizer=torch.tensor(6.0)))
    assert other["loss_giou_dn"].item() == pytest.approx(0.5 * found["loss_giou_dn"].item())


@pytest.mark.parametrize("kind", ["focal", "qfl"])
def test_class_weight_leaves_queries_and_classes_out(kind: str) -> None:
    predictions, targets = problem(1, 6, [2], 4, 0)
    criterion = Criterion(HungarianMatcher(), LOSSES[kind][0])
    query_weight = torch.tensor([1.0, 1, 1, 0, 1, 1])[None, :, None]
    class_weight = torch.tensor([1.0, 0, 1, 1])
    logits = predictions.logits.clone().requires_grad_()
    branch = Branch(Predictions(logits, predictions.boxes), targets, class_weight=query_weight * class_weight)
    criterion(branch)["loss_class"].backward()
    assert not logits.grad[0, 0, 3].any()
    assert not logits.grad[0, 0, :, 1].any()
    assert logits.grad[0, 0, [0, 1, 2, 4, 5]][:, [0, 2, 3]].abs().min() > 0


def test_softmax_query_weight_and_count_normaliser() -> None:
    predictions, targets = problem(1, 6, [2], 4, 0)
    targets[0].labels = targets[0].labels.clamp(max=2)
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1])[None, :, None]
    logits = predictions.logits.clone().requires_grad_()
    branch = Branch(Predictions(logits, predictions.boxes), targets, class_weight=weight)
    Criterion(HungarianMatcher("softmax"), SoftmaxLoss())(branch)["loss_class"].backward()
    assert not logits.grad[0, 0, 3].any()
    by_count = Criterion(HungarianMatcher("softmax"), SoftmaxLoss(1.0, by_weight=False))(Branch(predictions, targets))
    by_weight = Criterion(HungarianMatcher("softmax"), SoftmaxLoss(1.0))(Branch(predictions, targets))
    assert by_count["loss_class"].item() == pytest.approx(by_weight["loss_class"].item() * 6 / 2)


def test_quality_has_no_gradient_to_the_boxes() -> None:
    predictions, targets = problem(1, 6, [2], 4, 0)
    boxes = predictions.boxes.clone().requires_grad_()
    criterion = Criterion(HungarianMatcher(), QualityFocalLoss())
    logits = predictions.logits.clone().requires_grad_()
    criterion(Branch(Predictions(logits, boxes), targets))["loss_class"].backward()
    assert boxes.grad is None


def test_losses_are_float32_under_autocast() -> None:
    predictions, targets = problem(1, 6, [2], 4, 0, torch.float32)
    half = Predictions(predictions.logits.bfloat16(), predictions.boxes)
    with torch.autocast("cpu", torch.bfloat16):
        losses = Criterion(HungarianMatcher(), FocalLoss())(Branch(half, targets))
    assert {v.dtype for v in losses.values()} == {torch.float32}
