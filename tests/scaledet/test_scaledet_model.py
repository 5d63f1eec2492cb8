import copy
import json

import pytest
import torch
from detectron2.structures import pairwise_iou
from detectron2.utils.events import EventStorage
from scaledet_parts import CLASSES, HashEncoder, build_model, make_input

from polydet.data import DatasetCard, register_card
from polydet.text import LabelSpace, Vocabulary
from scaledet import VocabularyMismatch, joint_image_counts


def train_step(model, inputs):
    model.train()
    with EventStorage():
        torch.manual_seed(0)
        return model(inputs)


LOSSES = {"loss_centernet_pos", "loss_centernet_neg", "loss_centernet_box"} | {
    f"loss_{name}_stage{k}" for name in ("hard", "soft", "box_reg") for k in range(3)
}


def test_training_gives_weighted_losses_and_gradients_everywhere():
    model = build_model()
    losses = train_step(model, [make_input(), make_input(classes=(5, 6), dataset="farm", seed=1)])
    assert set(losses) == LOSSES
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("boxes", [[((), ()), ((), ())], [((), ()), (((10, 10, 50, 60),), (0,))]])
def test_images_without_objects(boxes):
    model = build_model()
    losses = train_step(model, [make_input(b, c) for b, c in boxes])
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_no_proposal_at_all():
    model = build_model()
    model.proposal_generator.score_thresh = 2.0
    losses = train_step(model, [make_input((), ())])
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        (output,) = model([make_input((), ())])
    assert len(output["instances"]) == 0


def test_one_class():
    model = build_model({"mono": ("cat",)})
    losses = train_step(model, [make_input(classes=(0, 0), dataset="mono")])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    "options", [{"hl_scope": "own_dataset"}, {"federated": "verified"}, {"soft_weight": 0.0}, {"use_bias": -4.6}]
)
def test_options_train(options):
    model = build_model(**options)
    inputs = [make_input(), make_input(classes=(5, 6), dataset="farm", seed=1)]
    inputs[1].update(pos_category_ids=[5, 6], neg_category_ids=[3])
    losses = train_step(model, inputs)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert ("loss_soft_stage0" in losses) == (options.get("soft_weight") is None)


def test_bfloat16_autocast_keeps_losses_in_float32():
    model = build_model()
    with torch.autocast("cpu", torch.bfloat16):
        losses = train_step(model, [make_input()])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (output,) = model([make_input()])
    assert output["instances"].scores.dtype == torch.float32


@pytest.mark.parametrize("where", ["backbone.fpn_output3.weight", "roi_heads.box_predictor.0.bbox_pred.2.bias"])
def test_what_is_not_finite_shows_in_the_losses_and_not_as_a_crash(where):
    model = build_model(test_score_thresh=0.0)
    with torch.no_grad():
        dict(model.named_parameters())[where].view(-1)[0] = torch.nan
    losses = train_step(model, [make_input(), make_input(seed=1)])
    assert not torch.isfinite(sum(losses.values()))  # the trainer stops at this and saves the step
    model.eval()
    with torch.no_grad():
        (output,) = model([make_input()])
    assert torch.isfinite(output["instances"].pred_boxes.tensor).all()


def test_accuracy_of_equal_names_counts_either():
    model = build_model()
    heads, text = model.roi_heads, model.train_vocabulary.embeddings  # "dog" is label 1 of the zoo and 3 of the farm
    with EventStorage() as storage:
        heads._log_accuracy(0, text[[1, 1, 2, 0]], torch.tensor([1, 3, 0, 7]))
        assert storage.latest()["stage0/fg_cls_accuracy"][0] == pytest.approx(2 / 3)


def test_inference_is_in_the_original_images_pixels():
    model = build_model(test_score_thresh=0.0)
    model.eval()
    item = make_input()
    item.update(height=192, width=384)
    with torch.no_grad():
        (output,) = model([item])
    found = output["instances"]
    assert found.image_size == (192, 384) and 0 < len(found) <= 300
    assert (found.scores.diff() <= 0).all() and int(found.pred_classes.max()) < 7
    assert found.pred_boxes.tensor[:, 0::2].max() <= 384 and found.pred_boxes.tensor[:, 1::2].max() <= 192
    assert found.pred_boxes.tensor[:, 2].max() > 128  # scaled up


def test_scores_are_root_of_mean_stage_probability_times_objectness():
    model = build_model(test_score_thresh=0.0, test_nms_thresh=1.0, test_topk_per_image=10**6, post_nms_topk=(5, 5))
    model.eval()
    seen = {}
    for k, predictor in enumerate(model.roi_heads.box_predictor):
        predictor.register_forward_hook(lambda module, args, output, k=k: seen.__setitem__(k, output))
    generator = model.proposal_generator
    generator.register_forward_hook(lambda module, args, output: seen.__setitem__("o", output[0][0].objectness_logits))
    with torch.no_grad():
        found = model([make_input()])[0]["instances"]
    text = model.train_vocabulary.embeddings
    probability = sum((50 * seen[k][0] @ text.T).sigmoid() for k in range(3)) / 3
    expected = (probability * seen["o"][:, None]).sqrt()
    assert len(found) == 5 * 7
    torch.testing.assert_close(found.scores, expected.flatten().sort(descending=True).values)


def test_vocabulary_swaps_and_comes_back():
    model = build_model(test_score_thresh=0.0)
    model.eval()
    item = make_input()
    with torch.no_grad():
        before = model([item])[0]["instances"]
        model.set_vocabulary(["red cat", "blue dog"])
        assert model.vocabulary.names == ("red cat", "blue dog")
        assert int(model([item])[0]["instances"].pred_classes.max()) == 1
        model.set_vocabulary(model.train_vocabulary.select([0, 1, 2]))
        assert int(model([item])[0]["instances"].pred_classes.max()) == 2
        model.set_vocabulary(None)
        after = model([item])[0]["instances"]
    torch.testing.assert_close(before.scores, after.scores)
    model.set_vocabulary(["x"])  # a vocabulary for prediction does not change what training learns
    assert set(train_step(model, [make_input(classes=(5, 6))])) == LOSSES


def test_words_equal_the_same_names_from_training():
    model = build_model(test_score_thresh=0.0)
    model.eval()
    item = make_input()
    with torch.no_grad():
        model.set_vocabulary(CLASSES["zoo"])
        words = model([item])[0]["instances"]
        model.set_vocabulary(model.train_vocabulary.select([0, 1, 2]))
        selected = model([item])[0]["instances"]
    torch.testing.assert_close(words.scores, selected.scores)


def test_bad_vocabularies():
    model = build_model()
    with pytest.raises(ValueError, match="another|built for"):
        model.set_vocabulary(Vocabulary.build(["a"], HashEncoder(id="other")))
    with pytest.raises(ValueError, match="list of names"):
        model.set_vocabulary("cat")
    with pytest.raises(ValueError, match="no text_encoder"):
        without = build_model()
        without.__dict__["text_encoder"] = None
        without.set_vocabulary(["cat"])  # a word of the training needs no encoder
        without.set_vocabulary(["zebra"])
    with pytest.raises(ValueError, match="text_dim=16"):
        build_model(text_dim=8)


def test_checkpoint_has_no_text_but_the_fingerprint():
    model = build_model(encoder=HashEncoder())
    state = model.state_dict()
    shapes = {tuple(v.shape) for v in state.values()}
    assert (7, 16) not in shapes and (16, 16) not in shapes
    assert not any("text_encoder" in key or "vocabulary" in key for key in state)
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    assert model.train_vocabulary.fingerprint in bytes(state["_extra_state"].tolist()).decode()


def test_checkpoint_of_the_same_vocabulary_loads():
    first, second = build_model(), build_model()
    second.set_vocabulary(["something else"])  # what is predicted at the moment does not matter
    second.load_state_dict(copy.deepcopy(first.state_dict()))


def test_other_names_are_an_error_that_shows_both_and_transfer_is_explicit():
    first, second = build_model(), build_model({"zoo": ("cat", "dog")})
    with pytest.raises(VocabularyMismatch) as caught:
        second.load_state_dict(first.state_dict())
    for model in (first, second):
        assert model.train_vocabulary.fingerprint in str(caught.value)
    assert "on_vocabulary_mismatch=transfer" in str(caught.value)
    second = build_model({"zoo": ("cat", "dog")}, on_vocabulary_mismatch="transfer")
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.roi_heads.box_head[0].fc1.weight, first.roi_heads.box_head[0].fc1.weight)


def test_another_encoder_is_an_error_even_for_transfer():
    first = build_model()
    second = build_model(encoder=HashEncoder(id="other"), on_vocabulary_mismatch="transfer")
    with pytest.raises(VocabularyMismatch, match="checkpoint's encoder"):
        second.load_state_dict(first.state_dict())


def test_mismatch_is_found_through_detectron2s_checkpointer(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    DetectionCheckpointer(build_model(), str(tmp_path)).save("model")
    other = build_model({"zoo": ("cat", "dog")})
    with pytest.raises(VocabularyMismatch):
        DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    DetectionCheckpointer(build_model()).load(str(tmp_path / "model.pth"))


def test_vocabulary_must_be_the_label_space():
    model = build_model()
    with pytest.raises(ValueError, match="same names"):
        type(model)(
            backbone=model.backbone,
            proposal_generator=model.proposal_generator,
            roi_heads=model.roi_heads,
            vocabulary=model.train_vocabulary,
            label_space=LabelSpace({"zoo": ("cat",)}),
        )


def test_pictures_of_proposals_during_training():
    model = build_model(vis_period=1)
    model.train()
    with EventStorage() as storage:
        model([make_input()])
        assert [name for name, _, _ in storage._vis_data] == ["Left: GT bounding boxes;  Right: Predicted proposals"]


def test_images_per_joint_label_come_from_the_cards(tmp_path, monkeypatch):
    boxes = [(1, 1), (1, 1), (1, 2), (2, 1)]  # image, category: the first class twice in image 1
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in (1, 2)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
            for k, (i, c) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    register_card(DatasetCard("scaledet_counts", str(tmp_path / "a.json"), str(tmp_path)))
    space = LabelSpace({"scaledet_counts": ("cat", "dog")})
    assert joint_image_counts(space) == [2, 1]
    model = build_model({"scaledet_counts": ("cat", "dog")}, federated="sampled", image_counts=[2, 1])
    assert model.roi_heads.label_loss.weights.tolist() == pytest.approx([2**0.5, 1.0])


def test_training_overfits_one_image():
    model = build_model(batch_size_per_image=32)
    item = make_input(boxes=((8, 8, 56, 56),), classes=(1,), size=(64, 64))
    item["image"][:] = 40
    item["image"][:, 8:56, 8:56] = 220
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(40):
        loss = sum(train_step(model, [item, item]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model.set_vocabulary(CLASSES["zoo"])
        best = model([item])[0]["instances"][0]
    overlap = pairwise_iou(best.pred_boxes, item["instances"].gt_boxes).item()
    assert best.pred_classes.item() == 1 and best.scores.item() > 0.5 and overlap > 0.7
