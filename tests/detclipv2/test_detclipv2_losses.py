"""Alignment and contrastive losses against literal float64 versions, in one and in two processes."""

import gc

import detclipv2_literal as literal
import pytest
import torch
from detclipv2_processes import (
    ALL_SETTINGS,
    Boxes,
    Pairs,
    boxes_in_process,
    in_processes,
    pairs_in_process,
    rows_in_process,
)

from detclipv2.alignment import alignment_loss, select_columns, unique_concepts
from detclipv2.contrastive import WordRegionLoss, text_to_image_similarity, word_region_loss
from polydet.dense import DenseTargets


def _literal_pairs(data, settings):
    image_weight = data.image_weight.clone().requires_grad_()
    text_weight = data.text_weight.clone().requires_grad_()
    images = [p[m] @ image_weight for p, m in zip(data.pixels, data.mask)]
    texts = [torch.stack([data.word[name] for name in text]) @ text_weight for text in data.texts]
    loss = literal.contrastive(
        images,
        texts,
        settings.temperature,
        settings.label_smoothing,
        settings.side,
        settings.norm_axis,
        settings.matching,
    )
    loss.backward()
    return loss.detach(), image_weight.grad, text_weight.grad


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: f"{s.side}-{s.norm_axis}-{s.matching}")
def test_contrastive_loss_equals_the_literal_one(settings):
    data = Pairs([7])
    for ours, expected in zip(data.loss(0, 1, settings), _literal_pairs(data, settings)):
        torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: f"{s.side}-{s.norm_axis}-{s.matching}")
@pytest.mark.parametrize("sizes", [[4, 4], [5, 3]])
def test_two_processes_give_the_loss_and_gradients_of_one(settings, sizes):
    expected = _literal_pairs(Pairs([8]), settings)
    for result in in_processes(pairs_in_process, sizes, settings):
        for ours, wanted in zip(result, expected):
            torch.testing.assert_close(torch.tensor(ours).double(), wanted, rtol=2e-5, atol=2e-5)


def test_classification_loss_in_two_processes():
    expected = Pairs([8]).loss(0, 1, "classification")
    for result in in_processes(pairs_in_process, [4, 4], "classification"):
        for ours, wanted in zip(result, expected):
            torch.testing.assert_close(torch.tensor(ours), wanted, rtol=1e-5, atol=1e-6)


def test_gathered_rows_may_differ_in_number():
    (rows, first, gradient, part), (rows2, first2, gradient2, part2) = in_processes(rows_in_process)
    assert rows == rows2 == [0.0, 0.0, 1.0, 2.0]
    assert (first, first2) == (0, 1)
    assert gradient == [2.0] and gradient2 == [4.0, 6.0, 8.0]  # both processes' losses
    assert (part, part2) == (["a", "b"], ["c", "c"])


def test_half_precision_regions_are_contrasted_in_float32():
    data = Pairs([6])
    regions, concepts = data.pixels.bfloat16(), torch.randn(9, 6).bfloat16()
    members = torch.tensor([[i, 6 + i % 3, -1] for i in range(6)])
    with torch.autocast("cpu", torch.bfloat16):
        loss = word_region_loss(regions, data.mask, concepts, members, 0, WordRegionLoss())
    wanted = word_region_loss(regions.float(), data.mask, concepts.float(), members, 0, WordRegionLoss())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted)


def test_regions_beyond_the_mask_have_no_influence():
    data = Pairs([4])
    concepts, members = torch.randn(4, 6), torch.arange(4)[:, None]
    regions = data.pixels.float()
    before = text_to_image_similarity(regions, data.mask, concepts, members)
    regions[0, 3:] = 1e4
    torch.testing.assert_close(text_to_image_similarity(regions, data.mask, concepts, members), before)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="'nearest' is none of closest"):
        WordRegionLoss(matching="nearest")


def _literal_alignment():
    data = Boxes()
    weight = data.weight.clone().requires_grad_()
    regions = data.regions.clone().requires_grad_()
    embedding = {name: row @ weight for name, row in data.word.items()}
    loss = literal.alignment(
        regions, data.concepts, data.boxes(), data.matches.tolist(), embedding, scale=2.0, bias=-1.0
    )
    loss.backward()
    return loss.detach(), weight.grad, regions.grad


@pytest.mark.parametrize("checkpointing", [False, True])
def test_alignment_loss_equals_the_literal_one(checkpointing):
    for ours, expected in zip(Boxes().loss([0, 1, 2, 3], checkpointing=checkpointing), _literal_alignment()):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_alignment_loss_in_two_processes():
    loss, gradient, _ = _literal_alignment()
    for ours, ours_gradient in in_processes(boxes_in_process):
        assert ours == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(torch.tensor(ours_gradient).double(), gradient, rtol=1e-5, atol=1e-6)


def test_one_focal_term_by_hand():
    matches = torch.tensor([[0, -1]])
    targets = DenseTargets(matches, torch.zeros(1, 2, 4), matches)
    regions, texts = torch.tensor([[[2.0, 0.0], [0.5, 1.0]]]), torch.eye(2)
    loss = alignment_loss(regions, texts, 1.0, -1.0, targets, [torch.tensor([[0.0, 1.0]])])
    terms = [(1.0, 0), (-1.0, 1), (-0.5, 0), (0.0, 0)]
    assert loss.item() == pytest.approx(sum(literal.focal_scalar(*t) for t in terms), rel=1e-5)


def test_a_checkpointed_alignment_loss_keeps_nothing_of_the_size_of_its_logits():
    matches = torch.full((1, 40), -1)
    matches[0, 3] = 0
    targets = DenseTargets(matches, torch.zeros(1, 40, 4), matches)
    regions, texts = torch.randn(1, 40, 6, requires_grad=True), torch.randn(17, 6)
    loss = alignment_loss(regions, texts, 1.0, 0.0, targets, [torch.eye(17)[:1]], checkpointing=True)
    assert loss.requires_grad
    assert not [x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape == (40, 17)]


def test_no_box_in_the_batch_gives_a_finite_loss():
    matches = torch.tensor([[-1, -1, -2]])
    targets = DenseTargets(matches, torch.zeros(1, 3, 4), matches)
    loss = alignment_loss(torch.randn(1, 3, 4), torch.randn(2, 4), 1.0, 0.0, targets, [torch.zeros(0, 2)])
    assert loss > 0 and loss.isfinite()


def test_cap_keeps_the_own_concepts():
    own, everyone = ["b", "x"], ["a", "b", "c", "d", "x"]
    generator = torch.Generator().manual_seed(0)
    assert select_columns(own, everyone, None) == ["b", "x", "a", "c", "d"]
    assert select_columns(own, everyone, 1) == own
    capped = select_columns(own, everyone, 4, generator)
    assert capped[:2] == own and len(capped) == 4 and set(capped[2:]) < {"a", "c", "d"}
    drawn = {tuple(select_columns(own, everyone, 3, generator)) for _ in range(30)}
    assert len(drawn) == 3


def test_a_capped_loss_leaves_out_columns_only():
    full, _, _ = Boxes().loss([0, 1, 2, 3])
    capped, _, _ = Boxes().loss([0, 1, 2, 3], limit=0)
    assert torch.equal(full, capped)  # one process: every concept is its own


def test_concepts_are_one_by_string():
    assert unique_concepts([["cat", "dog"], [], ["dog", "cat", "cat "]]) == ["cat", "dog", "cat "]
