from types import SimpleNamespace

import pytest
import scaledet_literal as literal
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scaledet_parts import make_embeddings

from polydet.layers.federated import sample_federated_labels
from polydet.text import LabelSpace, label_similarity
from scaledet.label_loss import LabelLoss
from scaledet.losses import SoftLabelTargets, duplicate_labels, hard_label_loss, soft_label_loss


def regions(rows, n, dim, background=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, dim, generator=generator)
    labels = torch.randint(0, n, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < background] = n
    return features, labels


def label_loss(text, owner_split=None, **options):
    names = [f"label {i}" for i in range(len(text))]
    split = owner_split or len(names) // 2
    loss = LabelLoss(**options)
    space = LabelSpace({"a": names[:split], "b": names[split:]})
    loss.set_labels(text, space, image_counts=list(range(1, len(text) + 1)))
    return loss


def both(features, text, labels, ours, theirs, atol=1e-6):
    """Loss and gradient of ours (float32 from unit rows) and of the literal float64 version."""
    x32 = features.clone().requires_grad_()
    x64 = features.double().requires_grad_()
    loss = ours(F.normalize(x32, dim=-1))
    expected = theirs(literal.cosines(x64, text.double()))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=atol)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(x32.grad.double(), x64.grad, rtol=1e-4, atol=1e-6)


def test_similarity_is_eq_3_and_4(embeddings):
    torch.testing.assert_close(label_similarity(embeddings.double()), literal.similarity(embeddings.double()))


@pytest.mark.parametrize("background", [0.0, 0.6, 1.0])
def test_hard_label_loss_is_eq_6(embeddings, background):
    features, labels = regions(23, len(embeddings), embeddings.shape[1], background)
    both(
        features,
        embeddings,
        labels,
        lambda v: hard_label_loss(v, embeddings, labels) / len(labels),
        lambda c: literal.hard(c, labels),
    )


def test_hard_label_loss_does_not_depend_on_the_chunks(embeddings, monkeypatch):
    features, labels = regions(23, len(embeddings), embeddings.shape[1])
    visual = F.normalize(features, dim=-1)
    results = []
    for elements in (1, 3 * len(embeddings), 1 << 20):
        monkeypatch.setattr("scaledet.losses._CPU_CHUNK_ELEMENTS", elements)
        v = visual.clone().requires_grad_()
        loss = hard_label_loss(v, embeddings, labels)
        loss.backward()
        results.append((loss.detach(), v.grad))
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


def test_bias_is_learnable_and_exact(embeddings):
    features, labels = regions(11, len(embeddings), embeddings.shape[1])
    ours = torch.tensor(-4.6, requires_grad=True)
    theirs = torch.tensor(-4.6, dtype=torch.float64, requires_grad=True)
    both(
        features,
        embeddings,
        labels,
        lambda v: hard_label_loss(v, embeddings, labels, bias=ours) / len(labels),
        lambda c: literal.hard(c, labels, bias=theirs),
    )
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_hard_label_loss_passes_gradcheck():
    text = make_embeddings(7, 5, 1).double()
    features, labels = regions(6, 7, text.shape[1])
    ignored = torch.full((6, 1), -1)
    ignored[0, 0] = (labels[0] + 1) % 7
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    visual = F.normalize(features.double(), dim=-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, b: hard_label_loss(v, text, labels, 5.0, b, ignored), (visual, bias))


@pytest.mark.parametrize("background", ["ignore", "zero"])
def test_soft_label_loss_is_eq_7(embeddings, background):
    features, labels = regions(23, len(embeddings), embeddings.shape[1])
    soft = SoftLabelTargets(embeddings)
    matrix = literal.similarity(embeddings.double())
    counted = len(labels) if background == "zero" else int((labels < len(embeddings)).sum())
    both(
        features,
        embeddings,
        labels,
        lambda v: soft_label_loss(v, labels, soft.gram, soft.cross, soft.square, background) / counted,
        lambda c: literal.soft(c, labels, matrix, background),
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 30), rows=st.integers(0, 12), seed=st.integers(0, 1000))
def test_language_loss_is_eqs_5_to_8(n, rows, seed):
    text = make_embeddings(n, 16, duplicates=0, seed=seed)
    features, labels = regions(rows, n, text.shape[1], seed=seed)
    loss = label_loss(text, owner_split=1, dup="negative")
    matrix = literal.similarity(text.double())
    visual = F.normalize(features, dim=-1).requires_grad_()
    losses = loss(visual, labels)
    sum(losses.values()).backward()
    assert torch.isfinite(visual.grad).all()
    if rows:
        cosine = literal.cosines(features.double(), text.double())
        expected = literal.hard(cosine, labels) + 10 * literal.soft(cosine, labels, matrix)
        torch.testing.assert_close(sum(losses.values()).double(), expected, rtol=1e-4, atol=1e-5)


def test_labels_with_one_embedding_are_not_each_others_negatives(embeddings):
    n = len(embeddings)
    features, labels = regions(40, n, embeddings.shape[1], 0.2)
    labels[0], labels[1] = 0, n - 2  # the two "person"s
    counted = torch.ones(40, n, dtype=torch.float64)
    cosine = embeddings.double() @ embeddings.double().T
    for row, label in enumerate(labels.tolist()):
        if label < n:
            for other in range(n):
                if other != label and cosine[label, other] > 0.9999:
                    counted[row, other] = 0
    assert counted[0, n - 2] == 0 and counted[1, 0] == 0
    ignoring, literally = label_loss(embeddings), label_loss(embeddings, dup="negative")
    both(
        features,
        embeddings,
        labels,
        lambda v: ignoring(v, labels)["loss_hard"],
        lambda c: literal.hard(c, labels, counted=counted),
    )
    both(
        features,
        embeddings,
        labels,
        lambda v: literally(v, labels)["loss_hard"],
        lambda c: literal.hard(c, labels),
    )


def test_duplicate_labels_lists_every_copy():
    text = make_embeddings(6, 8, 0)
    text[4] = text[1]
    text[5] = text[1]
    found = [sorted(j for j in row.tolist() if j >= 0) for row in duplicate_labels(text)]
    assert found == [[], [4, 5], [], [], [1, 5], [1, 4]]


def image(dataset, *present):
    return {"dataset_name": dataset, "instances": SimpleNamespace(gt_classes=torch.tensor(present, dtype=torch.long))}


def test_own_dataset_scope_counts_only_the_labels_of_the_images_dataset(embeddings):
    n, split = len(embeddings), 15
    loss = label_loss(embeddings, owner_split=split, hl_scope="own_dataset")
    features, labels = regions(20, n, embeddings.shape[1], 0.4)
    labels[:8][labels[:8] < n] %= split
    labels[8:][labels[8:] < n] = labels[8:][labels[8:] < n] % (n - split) + split
    counted = torch.zeros(20, n, dtype=torch.float64)
    counted[:8, :split] = 1
    counted[8:, split:] = 1
    columns = loss.image_labels([image("a", 1), image("b", 20), image("b")])
    both(
        features,
        embeddings,
        labels,
        lambda v: loss(v, labels, None, [8, 5, 7], columns)["loss_hard"],
        lambda c: literal.hard(c, labels, counted=counted),
    )


def test_own_dataset_scope_counts_the_label_of_an_object_pasted_from_another_dataset(embeddings):
    n, split = len(embeddings), 15
    loss = label_loss(embeddings, owner_split=split, hl_scope="own_dataset")
    features, labels = regions(4, n, embeddings.shape[1])
    labels[:] = torch.tensor([3, 20, n, 30])
    counted = torch.zeros(4, n, dtype=torch.float64)
    counted[:, :split] = 1
    counted[:3, 20] = 1
    counted[3, split:], counted[3, :split] = 1, 0
    columns = loss.image_labels([image("a", 3, 20, 20), image("b", 30)])
    both(
        features,
        embeddings,
        labels,
        lambda v: loss(v, labels, None, [3, 1], columns)["loss_hard"],
        lambda c: literal.hard(c, labels, counted=counted),
    )


def test_own_dataset_scope_names_the_image_of_an_unknown_dataset(embeddings):
    loss = label_loss(embeddings, hl_scope="own_dataset")
    with pytest.raises(KeyError, match="7.*x.jpg.*nowhere"):
        loss.image_labels([{"dataset_name": "nowhere", "image_id": 7, "file_name": "x.jpg"}])


def test_verified_labels_of_a_federated_image(embeddings):
    n = len(embeddings)
    loss = label_loss(embeddings, federated="verified")
    features, labels = regions(12, n, embeddings.shape[1])
    labels[:6] = torch.tensor([3, 3, n, 5, n, n])

    class Truth:
        gt_classes = torch.tensor([3, 5])

    inputs = [
        # label 4 is verified, but no box of it is left: neither present nor absent
        {"pos_category_ids": [3, 4], "neg_category_ids": [7, 9], "instances": Truth},
        {"instances": Truth},
    ]
    counted = torch.ones(12, n, dtype=torch.float64)
    counted[:6] = 0
    counted[:6, [3, 5, 7, 9]] = 1
    for row, label in enumerate(labels.tolist()):
        if label < n:
            same = embeddings @ embeddings[label] > 0.9999
            same[label] = False
            counted[row, same] = 0
    both(
        features,
        embeddings,
        labels,
        lambda v: loss(v, labels, None, [6, 6], loss.image_labels(inputs))["loss_hard"],
        lambda c: literal.hard(c, labels, counted=counted),
    )


def test_sampled_federated_labels():
    torch.manual_seed(0)
    weights = torch.tensor([1.0, 0.0, 4.0, 2.0, 1.0, 0.0])
    present = torch.tensor([1, 6, 6, 1])  # label 1 and background
    for count in (2, 4):
        chosen = sample_federated_labels(present, weights, count)
        assert 1 in chosen and 5 not in chosen and 6 not in chosen
        assert len(chosen) == max(1, count - 1) and len(chosen.unique()) == len(chosen)
    assert sample_federated_labels(present, weights, 50).tolist() == [0, 1, 2, 3, 4]
    draws = torch.stack([torch.bincount(sample_federated_labels(present, weights, 3), minlength=6) for _ in range(800)])
    share = draws.float().mean(0)
    assert abs(share[2] - 0.5) < 0.06 and abs(share[3] - 0.25) < 0.06 and abs(share[0] - 0.125) < 0.05


def test_sampled_federated_loss_is_the_full_loss_when_all_labels_are_drawn(embeddings):
    features, labels = regions(9, len(embeddings), embeddings.shape[1])
    visual = F.normalize(features, dim=-1)
    full = label_loss(embeddings)(visual, labels)["loss_hard"]
    sampled = label_loss(embeddings, federated="sampled", federated_count=1000)(visual, labels)["loss_hard"]
    torch.testing.assert_close(full, sampled)
    few = label_loss(embeddings, federated="sampled", federated_count=3)(visual, labels)["loss_hard"]
    assert few < full


@pytest.mark.parametrize("rows", [0, 5])
def test_no_foreground_and_no_regions_keep_the_graph(embeddings, rows):
    loss = label_loss(embeddings)
    visual = F.normalize(torch.randn(rows, embeddings.shape[1]), dim=-1).requires_grad_()
    labels = torch.full((rows,), len(embeddings))
    losses = loss(visual, labels)
    assert losses["loss_soft"] == 0
    sum(losses.values()).backward()
    assert visual.grad.shape == visual.shape and torch.isfinite(visual.grad).all()


def test_one_label():
    text = make_embeddings(1, 8, 0)
    loss = label_loss_of_one = LabelLoss()
    label_loss_of_one.set_labels(text, LabelSpace({"a": ["only"]}))
    visual = F.normalize(torch.randn(3, text.shape[1]), dim=-1).requires_grad_()
    losses = loss(visual, torch.tensor([0, 1, 1]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values()) and torch.isfinite(visual.grad).all()


def test_soft_weight_zero_leaves_the_soft_loss_out(embeddings):
    features, labels = regions(4, len(embeddings), embeddings.shape[1])
    assert set(label_loss(embeddings, soft_weight=0)(F.normalize(features, dim=-1), labels)) == {"loss_hard"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hl_scope": "mine"}, "hl_scope"),
        ({"dup": "drop"}, "dup"),
        ({"sl_background": "one"}, "sl_background"),
        ({"federated": "yes"}, "federated"),
        ({"federated": "sampled", "hl_scope": "own_dataset"}, "hl_scope='all'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(**options)


def test_label_space_and_counts_must_fit(embeddings):
    space = LabelSpace({"a": ["x", "y"]})
    with pytest.raises(ValueError, match="40 text embeddings.*2 labels"):
        LabelLoss().set_labels(embeddings, space)
    with pytest.raises(ValueError, match="image_counts"):
        LabelLoss(federated="sampled").set_labels(embeddings[:2], space)
