"""The category extraction module, the dot-product head and the asymmetric loss against literal transcriptions."""

import metr_literal as literal
import numpy as np
import pytest
import torch

from metr import CategoryExtraction, DotProduct, category_loss
from polydet.detr import Memory, TokenLayout
from polydet.layers import asymmetric_loss


def make_memory(dim, batch=2, padded=True):
    shapes = ((4, 3), (2, 2))
    tokens = sum(h * w for h, w in shapes)
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(batch, tokens, dtype=torch.bool)
    if padded:
        mask[1, 9:12] = mask[1, 14:] = True
    ratios = torch.ones(batch, len(shapes), 2, dtype=torch.float64)
    draw = [torch.randn(batch, tokens, dim, generator=generator).double() for _ in range(2)]
    return Memory(*draw, TokenLayout(shapes, mask if padded else None, ratios))


def numpy_state(module):
    return {k: v.detach().numpy() for k, v in module.double().state_dict().items()}


@pytest.mark.parametrize("padded", [False, True])
def test_cem_equals_equations_1_to_3(padded):
    torch.manual_seed(0)
    dim, heads, n = 16, 4, 5
    module = CategoryExtraction(dim, 2, heads, 24).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory = make_memory(dim, padded=padded)
    e, bias = torch.randn(n, dim).double(), torch.randn(n).double()
    logits, aware = module(e, bias, memory)
    for image in range(2):
        mask = memory.layout.padding_mask
        padding = np.zeros(16, dtype=bool) if mask is None else mask[image].numpy()
        expected, features = literal.cem(
            e.numpy(),
            bias.numpy(),
            memory.tokens[image].numpy(),
            memory.position[image].numpy(),
            padding,
            numpy_state(module),
            2,
            heads,
        )
        np.testing.assert_allclose(logits[image].detach().numpy(), expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(aware[image].detach().numpy(), features, rtol=1e-9, atol=1e-10)


def test_cem_can_look_at_some_levels():
    torch.manual_seed(0)
    memory = make_memory(16)
    module = CategoryExtraction(16, 1, 4, 24, levels=[1]).double()
    e, bias = torch.randn(3, 16).double(), torch.zeros(3).double()
    before = module(e, bias, memory)[0]
    memory.tokens[:, :12] = 0
    assert torch.equal(module(e, bias, memory)[0], before)
    memory.tokens[:, 12:14] += 1
    assert not torch.equal(module(e, bias, memory)[0], before)


def test_head_equals_algorithm_1():
    torch.manual_seed(0)
    head = DotProduct(16).double()
    torch.nn.init.normal_(head.linear.bias)
    q, e, b = torch.randn(3, 16).double(), torch.randn(3, 16).double(), torch.randn(3).double()
    weight, bias = (x.detach().numpy() for x in (head.linear.weight, head.linear.bias))
    expected = [literal.head(*(x.numpy() for x in (q[i], e[i])), weight, bias, float(b[i])) for i in range(3)]
    np.testing.assert_allclose(head(q, e, b).detach().numpy(), expected, rtol=1e-10)
    table = head.table(q[None], e[None], b[None])[0]
    np.testing.assert_allclose(table.diagonal().detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("gammas", [(0.0, 4.0), (0.0, 2.0), (1.0, 4.0)])
def test_asymmetric_loss_equals_its_equation(gammas):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=generator).double() * 4
    target = torch.rand(4, 6, generator=generator) < 0.4
    expected = literal.asl(logits.numpy(), target.numpy(), *gammas, 0.05)
    loss = asymmetric_loss(logits, target.double(), *gammas, 0.05)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9, atol=1e-12)
    mean = category_loss(logits, target, None, *gammas, 0.05)
    assert mean.item() == pytest.approx(expected.sum(1).mean(), rel=1e-9)


def test_focusing_weights_carry_no_gradient():
    """With the weights held constant, the derivative is weight times that of the cross-entropy."""
    logits = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    asymmetric_loss(logits, torch.tensor([1.0, 0.0]).double(), 1.0, 4.0, 0.05).sum().backward()
    p = literal.sigmoid(1.0)
    shifted = p - 0.05
    expected = [(1 - p) * -(1 - p), shifted**4 * p * (1 - p) / (1 - shifted)]
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-9)


def test_unknown_categories_cost_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    known = torch.tensor([[True, False, True], [True, True, False]])
    category_loss(logits, torch.tensor([[True, True, False], [False, False, True]]), known).backward()
    assert torch.equal(logits.grad == 0, ~known)


def test_loss_is_finite_for_sure_logits_in_half_precision():
    logits = torch.tensor([[-90.0, 90.0, 90.0, -90.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = category_loss(logits, torch.tensor([[True, False, True, False]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
