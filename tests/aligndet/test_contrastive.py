"""The vectorised loss against a literal transcription in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligndet.contrastive import box_contrastive_loss


def transcription(z1, l1, z2, l2, tau):
    """One label, one query, one positive at a time, as the paper and the published code define it."""
    z1 = z1 / z1.norm(dim=1, keepdim=True)
    z2 = z2 / z2.norm(dim=1, keepdim=True)
    per_label = []
    for label in sorted(set(l1.tolist()) - {-1}):
        queries = [i for i in range(len(z1)) if l1[i] == label]
        positives = [z2[j] for j in range(len(z2)) if l2[j] == label] or [z1[i] for i in queries]
        negatives = [z1[i].detach() for i in range(len(z1)) if l1[i] != label]
        negatives += [z2[j].detach() for j in range(len(z2)) if l2[j] != label]
        pairs = []
        for i in queries:
            for positive in positives:
                top = torch.exp(z1[i] @ positive / tau)
                bottom = top + sum(torch.exp(z1[i] @ n / tau) for n in negatives)
                pairs.append(-torch.log(top / bottom))
        per_label.append(sum(pairs) / len(pairs))
    return sum(per_label) / len(per_label)


def draw(seed, n1, n2, num_labels, dim=7):
    g = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n1, dim, generator=g, dtype=torch.float64)
    z2 = torch.randn(n2, dim, generator=g, dtype=torch.float64)
    l1 = torch.randint(-1, num_labels, (n1,), generator=g)
    l2 = torch.randint(-1, num_labels, (n2,), generator=g)
    return z1, l1, z2, l2


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n1=st.integers(1, 12),
    n2=st.integers(1, 12),
    num_labels=st.integers(1, 5),
    tau=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_equals_transcription_with_gradient(seed, n1, n2, num_labels, tau):
    z1, l1, z2, l2 = draw(seed, n1, n2, num_labels)
    if (l1 == -1).all():
        l1[0] = 0
    exact, fast = z1.clone().requires_grad_(), z1.float().requires_grad_()
    expected = transcription(exact, l1, z2, l2, tau)
    got = box_contrastive_loss(fast, l1, z2.float(), l2, tau)
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    expected.backward()
    got.backward()
    torch.testing.assert_close(fast.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_many_positives_and_background():
    z1, _, z2, _ = draw(3, 6, 5, 3)
    l1 = torch.tensor([0, 0, 1, -1, -1, 2])
    l2 = torch.tensor([0, 0, 0, -1, 1])  # label 2 has no key in the other view
    expected = transcription(z1, l1, z2, l2, 0.5)
    torch.testing.assert_close(box_contrastive_loss(z1, l1, z2, l2).double(), expected, rtol=1e-5, atol=1e-6)


def test_background_never_is_a_query():
    z1, _, z2, _ = draw(5, 4, 4, 2)
    online = z1.float().requires_grad_()
    loss = box_contrastive_loss(online, torch.full((4,), -1), z2.float(), torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and online.grad.abs().sum() == 0


def test_no_query_is_zero_in_half_precision():
    """A sum of half-precision embeddings overflows, and infinity times zero is no zero."""
    online = torch.full((9, 64), 300.0, dtype=torch.float16, requires_grad=True)
    background = torch.full((9,), -1)
    loss = box_contrastive_loss(online, background, online.detach(), background)
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32 and (online.grad == 0).all()


def test_negatives_and_keys_get_no_gradient():
    z1, _, z2, _ = draw(7, 5, 5, 2)
    online, target = z1.float().requires_grad_(), z2.float().requires_grad_()
    labels = torch.tensor([0, -1, -1, -1, -1])
    box_contrastive_loss(online, labels, target, labels).backward()
    assert target.grad is None
    assert online.grad[0].abs().sum() > 0 and online.grad[1:].abs().sum() == 0


def test_no_negative_at_all_is_zero_and_finite():
    online = torch.randn(3, 4, requires_grad=True)
    zeros = torch.zeros(3, dtype=torch.long)
    loss = box_contrastive_loss(online, zeros, torch.randn(3, 4), zeros)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(online.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_float32(dtype):
    z1, l1, z2, l2 = draw(11, 8, 8, 3)
    with torch.autocast("cpu", dtype=dtype):
        got = box_contrastive_loss(z1.float(), l1, z2.float(), l2)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), transcription(z1, l1, z2, l2, 0.5), rtol=1e-5, atol=1e-6)
