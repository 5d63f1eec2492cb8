"""Parts that do not go together are refused by name, not left out silently."""

import pytest
import torch

from metr import CategoryLabels, CategoryLoss
from polydet.detr import Criterion, EmbeddingLoss, FocalLoss, HungarianMatcher, Queries, TextLabels
from polydet.text import Vocabulary

from .builders import build


class Near(EmbeddingLoss):
    name = "near"


def test_a_loss_on_texts_needs_a_head_of_words():
    criterion = Criterion(HungarianMatcher(), FocalLoss(), extra=[Near()])
    with pytest.raises(ValueError, match=r"criterion.extra \(near\) compares queries with texts, which ClosedLabels"):
        build("deformable", criterion=criterion)


def test_a_head_of_words_needs_words():
    with pytest.raises(ValueError, match="build the detector as OpenDETR"):
        build("deformable", labels=TextLabels())


def test_two_auxiliary_parts_of_one_name():
    with pytest.raises(ValueError, match="already: it takes one such auxiliary part"):
        build("deformable", auxiliary=[CategoryLoss(), CategoryLoss()])


def test_queries_without_a_category_are_named():
    head = CategoryLabels()
    head.start(Vocabulary(("a",), ("{}",), "none", torch.ones(1, 4)), 8)
    head.add_heads(8, 1)
    with pytest.raises(ValueError, match="use a CategoryQuerySource"):
        head(torch.zeros(1, 1, 2, 8), 0, Queries(torch.zeros(1, 2, 8)))
