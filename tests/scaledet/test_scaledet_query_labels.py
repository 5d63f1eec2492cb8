"""ScaleDet's labels on the queries of a DETR, against the losses of its own heads."""

import pytest
import torch
import torch.nn.functional as F
from scaledet_parts import HashEncoder

from polydet.text import LabelSpace, Vocabulary
from scaledet import HardLabels, SoftLabels
from scaledet.losses import duplicate_labels, hard_label_loss

SPACE = LabelSpace({"zoo": ["cat", "dog", "fox"], "farm": ["cow", "dog"]})  # two dogs that no encoder tells apart


@pytest.fixture
def queries():
    text = Vocabulary.build(SPACE.names, HashEncoder(), "photo", unique=False).embeddings
    generator = torch.Generator().manual_seed(0)
    visual = F.normalize(torch.randn(2, 1, 4, text.shape[1], generator=generator), dim=-1)
    labels = torch.tensor([[[0, 1, -1, 4]], [[-1, -1, 2, 3]]])
    return text, visual, labels


def test_hard_labels_are_those_of_the_heads(queries):
    text, visual, labels = queries
    logits = 20.0 * visual @ text.T - 1.0
    found = HardLabels(SPACE, HashEncoder(), "photo")(logits, labels, torch.zeros(2, 1, 4), None, torch.tensor(2.0))
    ignored = torch.cat([duplicate_labels(text), torch.full((1, 1), -1)])
    for layer in range(2):
        own = torch.where(labels[layer, 0] < 0, len(text), labels[layer, 0])
        expected = hard_label_loss(visual[layer, 0], text, own, 20.0, torch.tensor(-1.0), ignored[own]) / 2.0
        torch.testing.assert_close(found[layer], expected)


def test_duplicates_may_count_and_labels_left_out_do_not(queries):
    text, visual, labels = queries
    logits = 20.0 * visual @ text.T - 1.0
    quality, one = torch.zeros(2, 1, 4), torch.tensor(1.0)
    counted = HardLabels(SPACE, HashEncoder(), "photo", ignore_duplicates=False)
    every = F.binary_cross_entropy_with_logits(
        logits, F.one_hot(labels.clamp(min=0), 5) * (labels >= 0)[..., None].float(), reduction="none"
    )
    torch.testing.assert_close(counted(logits, labels, quality, None, one), every.flatten(1).sum(1))
    weight = torch.tensor([[[1.0, 1.0, 0.0, 1.0, 0.0]]])
    expected = every[..., [0, 1, 3]].flatten(1).sum(1)
    torch.testing.assert_close(counted(logits, labels, quality, weight, one), expected)


def test_soft_labels_leave_background_alone(queries):
    _, visual, labels = queries
    visual = visual.clone().requires_grad_()
    SoftLabels(SPACE, HashEncoder(), "photo", weight=2.0)(visual, labels, torch.tensor(3.0)).sum().backward()
    assert visual.grad[labels < 0].eq(0).all() and visual.grad[labels >= 0].ne(0).any(-1).all()
