"""METR as a whole: losses, what its words mean, and what it refuses."""

import logging
from dataclasses import replace

import pytest
import torch
from metr_parts import COCO, DIM, HashEncoder, make_batch, make_input, tiny_metr

from metr import LanguageDenoising
from metr.denoising import true_classes
from polydet.detr import Criterion, FocalLoss, HungarianMatcher, Targets
from polydet.text import Vocabulary, VocabularyMismatch

KINDS = [{}, {"allocation": "adaptive"}, {"cem": False}, {"mask_foreign": True}, {"share_heads": False}]


def trained(**options):
    """A model whose scores differ between queries."""
    torch.manual_seed(0)
    model = tiny_metr(**options)
    for name, parameter in model.named_parameters():
        if "head" in name or "project" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_parameter_learns(options):
    torch.manual_seed(0)
    model = tiny_metr(**options).train()
    losses = model(make_batch())
    expected = {"loss_class", "loss_bbox", "loss_giou"}
    names = expected | {f"{n}_0" for n in expected} | {f"{n}_enc" for n in expected}
    names |= {f"{n}_dn" for n in expected} | {f"{n}_dn_0" for n in expected}
    assert set(losses) == names | ({"loss_cem"} if options.get("cem", True) else set())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_batch_without_objects_trains_every_parameter(options):
    torch.manual_seed(0)
    model = tiny_metr(**options).train()
    sum(model([make_input([], []), make_input([], [], (48, 64))]).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_fixed_embeddings_keep_still():
    model = tiny_metr(learnable_text=False).train()
    sum(model(make_batch()).values()).backward()
    assert model.language.weight.grad is None
    assert torch.equal(model.language.weight, model.train_vocabulary.embeddings)


def test_embeddings_start_as_the_encoder_gives_them():
    model = tiny_metr(text_scale=3.0)
    assert model.train_vocabulary.names == (*COCO, "face")
    assert torch.allclose(
        model.language.weight, 3 * HashEncoder().encode([f"a photo of a {n}" for n in [*COCO, "face"]])
    )


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_inference(options):
    model = trained(**options).eval()
    batch = make_batch()
    batch[0]["height"], batch[0]["width"] = 128, 192
    with torch.no_grad():
        outputs = model(batch)
    found = outputs[0]["instances"]
    assert found.image_size == (128, 192)
    assert len(found) == 12
    assert found.pred_boxes.tensor[:, [0, 2]].max() <= 192
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.pred_classes.min() >= 0
    assert found.pred_classes.max() < 5
    assert ("class_scores" in outputs[0]) == options.get("cem", True)


def test_without_cem_inference_looks_for_every_category():
    model = trained(cem=False, top_k=2, num_queries=4).eval()
    model.postprocess.num = 100
    with torch.no_grad():
        classes = model(make_batch())[0]["instances"].pred_classes
    assert torch.bincount(classes).tolist() == [2] * 5


def test_score_is_the_matchability_or_weighted_by_presence():
    model = trained().eval()
    with torch.no_grad():
        plain = model(make_batch())[0]
        model.postprocess.category_power = 1.0
        weighted = model(make_batch())[0]
    presence = plain["class_scores"]
    expected = plain["instances"].scores * presence[plain["instances"].pred_classes]
    assert torch.allclose(weighted["instances"].scores, expected.sort(descending=True).values)


# ---- words


def test_one_word_returns_only_its_class():
    model = trained().eval()
    model.set_vocabulary(["bottle"])
    with torch.no_grad():
        output = model(make_batch())[0]
    assert output["instances"].pred_classes.eq(0).all()
    assert output["class_scores"].shape == (1,)
    assert model.vocabulary.names == ("bottle",)


def test_going_back_restores_the_model():
    model = trained().eval()
    with torch.no_grad():
        before = model(make_batch())[0]["instances"]
        model.set_vocabulary(["zebra", "cup"])
        model.set_vocabulary(None)
        after = model(make_batch())[0]["instances"]
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.pred_classes, after.pred_classes)
    assert model.vocabulary is model.train_vocabulary


def test_the_order_of_words_only_renumbers():
    model = trained().eval()
    with torch.no_grad():
        model.set_vocabulary([*COCO, "face"])
        first = model(make_batch())[0]["instances"]
        model.set_vocabulary(["face", *COCO[::-1]])
        second = model(make_batch())[0]["instances"]
    assert torch.allclose(first.scores, second.scores, atol=1e-5)
    assert torch.equal(first.pred_classes, 4 - second.pred_classes)


def test_trained_words_keep_what_was_learned_and_need_no_encoder():
    model = trained().eval()
    with torch.no_grad():
        model.language.weight += 1.0
    model.keep_encoder(None)
    model.set_vocabulary(["Cup", "person"])
    assert torch.allclose(model.language(), model.language.project(model.language.weight[[3, 0]]))
    with pytest.raises(ValueError, match="text_encoder"):
        model.set_vocabulary(["zebra"])


def test_new_words_enter_by_their_text(caplog):
    model = trained().eval()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        model.set_vocabulary(["zebra", "fox"])
        expected = model.language.project(HashEncoder().encode(["a photo of a zebra", "a photo of a fox"]))
        assert torch.allclose(model.language(), expected, atol=1e-6)
        assert torch.allclose(model.language.bias("cem"), model.language.biases["cem"].mean())
        found = model(make_batch())[0]["instances"]
    assert "2 of 2 categories were not trained" in caplog.text
    assert set(found.pred_classes.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one"),
        (["cup", ""], "empty"),
        (["zebra", "zebra"], "given twice"),
        (["cup", "Cup"], "same category"),
        (["tea_cup", "tea cup"], "same category"),
        ("cup", "list of names"),
    ],
)
def test_words_that_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        tiny_metr().set_vocabulary(words)


def test_a_vocabulary_of_another_encoder_is_refused():
    with pytest.raises(ValueError, match="other"):
        tiny_metr().set_vocabulary(Vocabulary.build(["cup"], HashEncoder("other")))


def test_labels_that_mean_the_same_are_refused():
    with pytest.raises(ValueError, match="merge='name'"):
        model = tiny_metr()
        from polydet.text import LabelSpace

        type(model)(
            label_space=LabelSpace({"a": ["cup"], "b": ["Cup"]}), text_encoder=HashEncoder(), queries=None, cem=None
        )


def test_training_needs_the_training_vocabulary():
    model = tiny_metr().train()
    model.set_vocabulary(["cup"])
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        model(make_batch())


def test_a_plain_matcher_is_refused():
    with pytest.raises(ValueError, match="GroupMatcher"):
        tiny_metr(criterion=Criterion(HungarianMatcher(), FocalLoss()))


def test_a_checkpoint_knows_its_vocabulary():
    state = tiny_metr().state_dict()
    tiny_metr().load_state_dict(state)
    with pytest.raises(VocabularyMismatch):
        tiny_metr({"coco": [*COCO[:-1], "mug"], "faces": ["face"]}).load_state_dict(state)
    with pytest.raises(VocabularyMismatch):
        tiny_metr(encoder=HashEncoder("other")).load_state_dict(state)


# ---- matching and labels


def test_more_categories_in_an_image_than_places():
    torch.manual_seed(0)
    model = tiny_metr(top_k=2).train()
    boxes = [[4 + 20 * i, 5, 20 + 20 * i, 40] for i in range(4)]
    batch = [make_input(boxes, [0, 1, 2, 3])]
    targets = model.prepare_targets(batch)
    memory = model.encode(model.preprocess(batch))
    queries = model.build_queries(memory, targets)
    matched = queries.classes[:, queries.denoising.num_queries :]
    assert len(matched.unique()) == 2
    found = model.criterion.matcher(queries.branches[0].predictions, targets)
    assert found.surplus == 2
    assert all(torch.isfinite(v) for v in model(batch).values())


def test_boxes_are_averaged_over_all_objects_matched_or_not():
    torch.manual_seed(0)
    model = tiny_metr(top_k=2, num_queries=2).train()
    model.denoising = None
    inputs = [make_input([[5, 5, 30, 40], [40, 10, 80, 60], [50, 20, 70, 40]], [0, 0, 0])]
    targets = model.prepare_targets(inputs)
    queries = model.build_queries(model.encode(model.preprocess(inputs)), targets)
    (branch,) = queries.branches
    assert branch.name == "enc"
    assert len(model.criterion.matcher(branch.predictions, targets).query) == 1
    whole = model.criterion(branch)["loss_bbox_enc"]
    assert torch.allclose(model.criterion(replace(branch, normalizer=torch.tensor(1.0)))["loss_bbox_enc"], whole * 3)


def test_queries_answer_only_for_their_category():
    """Renaming the category of an object moves its match to queries of that category."""
    torch.manual_seed(0)
    model = tiny_metr(top_k=5, num_queries=10).train()
    for label in range(4):
        batch = [make_input([[5, 5, 30, 40]], [label])]
        targets = model.prepare_targets(batch)
        queries = model.build_queries(model.encode(model.preprocess(batch)), targets)
        classes = queries.classes[:, queries.denoising.num_queries :]
        found = model.criterion.matcher(queries.branches[0].predictions, targets)
        assert classes[0, found.query].tolist() == [label]


def test_mask_foreign_keeps_to_the_dataset_of_each_image():
    torch.manual_seed(0)
    model = tiny_metr(top_k=5, num_queries=10, mask_foreign=True).train()
    torch.nn.init.zeros_(model.language.biases["cem"])  # negatives below the margin of the loss cost nothing
    batch = make_batch()
    targets = model.prepare_targets(batch)
    queries = model.build_queries(model.encode(model.preprocess(batch)), targets)
    classes = queries.classes[:, queries.denoising.num_queries :]
    assert set(classes[0].tolist()) == {0, 1, 2, 3}
    assert set(classes[1].tolist()) == {4}
    (grad,) = torch.autograd.grad(model(batch)["loss_cem"], model.language.biases["cem"])
    assert grad.ne(0).all()
    (grad,) = torch.autograd.grad(model(batch[1:2])["loss_cem"], model.language.biases["cem"])
    assert grad.ne(0).tolist() == [False] * 4 + [True]
    with pytest.raises(ValueError, match="mask_foreign needs dataset_name"):
        model([{**batch[0], "dataset_name": "unknown"}])


def test_pasted_objects_of_another_dataset_count():
    torch.manual_seed(0)
    model = tiny_metr(top_k=5, num_queries=10, mask_foreign=True).train()
    batch = [make_input([[5, 5, 30, 40], [40, 10, 80, 60]], [0, 4])]  # 4 is no label of coco
    targets = model.prepare_targets(batch)
    queries = model.build_queries(model.encode(model.preprocess(batch)), targets)
    classes = queries.classes[:, queries.denoising.num_queries :]
    assert set(classes[0].tolist()) == {0, 1, 2, 3, 4}
    assert model.criterion.matcher(queries.branches[0].predictions, targets).surplus == 0


@pytest.mark.parametrize(("mask_foreign", "expected"), [(True, {0, 1, 3}), (False, {0, 1, 3, 4})])
def test_unverified_labels_do_not_count(mask_foreign, expected):
    torch.manual_seed(0)
    model = tiny_metr(top_k=5, num_queries=10, mask_foreign=mask_foreign, federated="verified").train()
    torch.nn.init.zeros_(model.language.biases["cem"])
    # label 2 is verified, but no box of it is left: neither present nor absent
    batch = [make_input([[5, 5, 30, 40]], [0], pos_category_ids=[0, 2], neg_category_ids=[1, 3])]
    targets = model.prepare_targets(batch)
    queries = model.build_queries(model.encode(model.preprocess(batch)), targets)
    assert set(queries.classes[0, queries.denoising.num_queries :].tolist()) == expected
    (grad,) = torch.autograd.grad(model(batch)["loss_cem"], model.language.biases["cem"])
    assert set(grad.nonzero()[:, 0].tolist()) == expected


def test_an_image_of_which_nothing_is_known_costs_nothing():
    torch.manual_seed(0)
    model = tiny_metr(mask_foreign=True, federated="verified").train()
    losses = model([make_input([], [], pos_category_ids=[], neg_category_ids=[])])
    assert all(value == 0 for value in losses.values())


# ---- denoising


def test_denoising_speaks_the_language_of_the_dataset():
    torch.manual_seed(0)
    denoising = LanguageDenoising(DIM, 20, label_noise=1.0)
    language = torch.randn(6, DIM, requires_grad=True)
    own = torch.tensor([True, True, False, False, True, False])
    boxes = torch.full((3, 4), 0.4)
    targets = [Targets(torch.tensor([0, 4, 1]), boxes, own=own), Targets(torch.tensor([5]), boxes[:1])]
    noised = denoising(targets, language)
    classes, real = true_classes(noised, targets)
    assert classes[0].tolist() == [0, 4, 1] * (noised.num_queries // 3)
    assert real[0].all()
    assert real[1].tolist() == [True, False, False] * (noised.num_queries // 3)
    assert classes[1][real[1]].eq(5).all()
    used = (noised.content[0][:, None] == language[None]).all(-1)
    assert used.any(1).all()
    assert not used[:, ~own].any()
    assert noised.content[1][~real[1]].eq(0).all()
    noised.content.sum().backward()
    assert language.grad.abs().sum() > 0


def test_bf16_autocast():
    torch.manual_seed(0)
    model = tiny_metr().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_batch())
        sum(losses.values()).backward()
    assert all(torch.isfinite(v) and v.dtype == torch.float32 for v in losses.values())
    model.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.isfinite(model(make_batch())[0]["instances"].scores).all()


def test_it_learns_two_images_by_heart():
    torch.manual_seed(0)
    model = tiny_metr({"a": ["cup", "fox"]}, top_k=2, num_queries=8, text_scale=3.0).train()
    batch = []
    for seed, (box, label, channel) in enumerate([([10, 10, 40, 40], 0, 0), ([50, 20, 90, 60], 1, 2)]):
        x = make_input([box], [label], dataset="a", seed=seed)
        x["image"][:] = 40
        x["image"][channel, box[1] : box[3], box[0] : box[2]] = 250
        batch.append(x)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(160):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for x, output in zip(batch, model(batch)):
            instances, expected = output["instances"], x["instances"]
            assert instances.pred_classes[0] == expected.gt_classes[0]
            assert (instances.pred_boxes.tensor[0] - expected.gt_boxes.tensor[0]).abs().max() < 4
            assert output["class_scores"].argmax() == expected.gt_classes[0]
        model.set_vocabulary(["fox"])
        scores = [output["instances"].scores[0] for output in model(batch)]
    assert scores[1] > 2 * scores[0]
