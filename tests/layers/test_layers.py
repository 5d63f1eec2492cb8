"""Layers against literal versions of their formulas."""

import math
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from polydet.layers import (
    MLP,
    FeedForward,
    SinePositionEncoding,
    activation_module,
    asymmetric_loss,
    cxcywh_to_xyxy,
    distribution_focal_loss,
    encode_anchors,
    inverse_sigmoid,
    iou_and_giou,
    linear_soft_nms,
    quality_focal_loss,
    sine_encoding,
    xyxy_to_cxcywh,
)


def boxes(n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=g, dtype=dtype)
    return torch.cat((low, low + torch.rand(n, 2, generator=g, dtype=dtype) + 1e-3), dim=1)


def test_box_conversions_are_inverse_and_agree_with_torchvision() -> None:
    x = boxes(20, 0)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(x)), x)
    torch.testing.assert_close(xyxy_to_cxcywh(x), torchvision.ops.box_convert(x, "xyxy", "cxcywh"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_giou_of_all_pairs_agrees_with_torchvision(seed: int) -> None:
    a, b = boxes(6, seed), boxes(4, seed + 1)
    iou, giou = iou_and_giou(a[:, None], b[None])
    torch.testing.assert_close(iou, torchvision.ops.box_iou(a, b))
    torch.testing.assert_close(giou, torchvision.ops.generalized_box_iou(a, b))


def test_giou_of_small_boxes_is_exact_and_of_empty_ones_finite() -> None:
    small = torch.tensor([[0.5, 0.5, 0.5005, 0.5005]])
    iou, giou = iou_and_giou(small, small)
    assert iou.item() == 1.0
    assert giou.item() == 1.0
    empty = torch.tensor([[0.2, 0.2, 0.2, 0.2]], requires_grad=True)
    iou, giou = iou_and_giou(empty, small)
    giou.sum().backward()
    assert iou.item() == 0.0
    assert torch.isfinite(empty.grad).all()


def test_inverse_sigmoid() -> None:
    x = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert torch.isfinite(inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))).all()


def test_sine_encoding_is_the_literal_formula() -> None:
    x, dim = 0.37, 8
    expected = []
    for i in range(dim // 2):
        angle = x * 2 * math.pi / 10000 ** (2 * i / dim)
        expected += [math.sin(angle), math.cos(angle)]
    encoded = sine_encoding(torch.tensor([x], dtype=torch.float64), dim)
    torch.testing.assert_close(encoded, torch.tensor(expected, dtype=torch.float64))


def test_anchors_are_encoded_y_first() -> None:
    anchor = torch.tensor([0.1, 0.2, 0.3, 0.4])
    parts = encode_anchors(anchor, 8).split(8)
    for part, coordinate in zip(parts, (0.2, 0.1, 0.3, 0.4)):
        torch.testing.assert_close(part, sine_encoding(torch.tensor([coordinate]), 8))


def test_image_positions_do_not_depend_on_padding() -> None:
    encoding = SinePositionEncoding(16, offset=-0.5)
    alone = encoding(torch.zeros(1, 3, 5, 7))
    mask = torch.ones(1, 9, 12, dtype=torch.bool)
    mask[:, :5, :7] = False
    padded = encoding(torch.zeros(1, 3, 9, 12), mask)
    torch.testing.assert_close(padded[:, :, :5, :7], alone)


def test_sine_encoding_refuses_odd_widths() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        SinePositionEncoding(30)


def test_perceptrons() -> None:
    mlp = MLP(4, 8, 2, 3)
    assert [layer.out_features for layer in mlp.layers] == [8, 8, 2]
    mlp.zero_last()
    assert not mlp(torch.randn(3, 4)).any()
    ffn = FeedForward(4, 8, activation="gelu")
    x = torch.randn(5, 4)
    torch.testing.assert_close(ffn(x), ffn.linear2(torch.nn.functional.gelu(ffn.linear1(x))))
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        activation_module("tanh")  # type: ignore[arg-type]


def test_quality_focal_loss_is_the_literal_formula() -> None:
    logits, quality = torch.randn(40, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    s = logits.sigmoid()
    expected = (quality - s).abs() ** 2 * -((1 - quality) * (1 - s).log() + quality * s.log())
    torch.testing.assert_close(quality_focal_loss(logits, quality), expected)


def test_distribution_focal_loss_is_the_literal_formula() -> None:
    logits, target = torch.randn(30, 17, dtype=torch.float64), torch.rand(30, dtype=torch.float64) * 15.9
    p = logits.softmax(-1)
    expected = []
    for row, y in zip(p, target):
        low = int(y)
        expected.append(-((low + 1 - y) * row[low].log() + (y - low) * row[low + 1].log()))
    torch.testing.assert_close(distribution_focal_loss(logits, target), torch.stack(expected))
    assert torch.isfinite(distribution_focal_loss(logits, torch.full((30,), 99.0, dtype=torch.float64))).all()


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "clip"), [(0.0, 4.0, 0.05), (1.0, 4.0, 0.0)])
def test_asymmetric_loss_is_the_literal_formula(gamma_pos: float, gamma_neg: float, clip: float) -> None:
    logits = torch.randn(50, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(50) < 0.4).double()
    loss = asymmetric_loss(logits, target, gamma_pos, gamma_neg, clip)
    p = logits.detach().sigmoid()
    shifted = (p - clip).clamp(min=0)
    positive = -((1 - p) ** gamma_pos) * p.log()
    negative = -(shifted**gamma_neg) * (1 - shifted).log()
    torch.testing.assert_close(loss.detach(), torch.where(target > 0, positive, negative))
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_asymmetric_loss_is_finite_for_extreme_logits() -> None:
    logits = torch.tensor([-80.0, 80.0, -80.0, 80.0])
    loss = asymmetric_loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.isfinite(loss).all()
    assert loss[0] == 0
    assert loss[3] < 1e-6


def test_soft_nms_is_the_literal_algorithm() -> None:
    x, scores = boxes(30, 3, torch.float32), torch.rand(30)
    classes = torch.randint(0, 2, (30,))
    left = {i: float(s) for i, s in enumerate(scores)}
    expected = []
    while left:
        best = max(left, key=lambda i: left[i])
        score = left.pop(best)
        if score < 1e-3:
            break
        expected.append((best, score))
        for i in left:
            iou = float(torchvision.ops.box_iou(x[best][None], x[i][None]))
            if classes[i] == classes[best] and iou > 0.3:
                left[i] *= 1 - iou
    keep, kept_scores = linear_soft_nms(x, scores, classes, 0.3)
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(kept_scores, torch.tensor([s for _, s in expected]))
    assert (kept_scores < scores[keep] - 1e-6).any()


def test_soft_nms_compares_boxes_of_one_class_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of all classes' overlaps would not fit at COCO's size."""
    sizes = []
    module = sys.modules[linear_soft_nms.__module__]
    monkeypatch.setattr(module, "box_iou", lambda a, b: sizes.append(len(a)) or torchvision.ops.box_iou(a, b))
    keep, _ = linear_soft_nms(boxes(70, 3, torch.float32), torch.rand(70) + 0.5, torch.arange(70) % 7)
    assert sizes == [10] * 7 and sorted(keep.tolist()) == list(range(70)), "decayed, none gone"


def test_soft_nms_of_nothing() -> None:
    keep, scores = linear_soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert keep.numel() == scores.numel() == 0
