"""The meta-architecture: losses of each task, words, regions, checkpoints."""

import logging

import pytest
import torch
from detclipv2_literal import contrastive
from detclipv2_parts import (
    DIM,
    STRIDES,
    Letters,
    TrainedLetters,
    boxed,
    caption_batch,
    captioned,
    detection_batch,
    make_model,
    picture,
)
from detclipv2_processes import in_processes, model_gradients, model_in_process
from detectron2.modeling import META_ARCH_REGISTRY
from torchvision.ops import deform_conv2d

from detclipv2 import RegionSelection, WordRegionLoss
from detclipv2.deform import sampled_conv
from detclipv2.head import DeformableModule
from detclipv2.words import encode_batch
from polydet.engine import load_weights
from polydet.text import FrozenTextTower, Vocabulary, VocabularyMismatch

LOSSES = {
    "detection": {"loss_align", "loss_box", "loss_quality"},
    "grounding": {"loss_align_grounding"},
    "pairs": {"loss_words"},
    "classification": {"loss_class"},
}


def batch_of(task):
    return detection_batch(task) if task in ("detection", "grounding") else caption_batch(task)


def gradients(model, items):
    model.zero_grad()
    losses = model(items)
    sum(losses.values()).backward()
    return losses, {n: p.grad.abs().sum().item() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("task", LOSSES)
def test_two_processes_are_one(task):
    if task in ("detection", "grounding"):  # of one size: group norm sees the padding
        items = [
            boxed(["cat", "dog", "bird"], [[4, 4, 40, 40], [50, 10, 90, 60]], [[0], [1, 2]], task, 0),
            boxed(["dog", "fish"], [[10, 10, 60, 60]], [[1]], task, 1),
            boxed(["dog", "ant"], [], [], task, 2),
            boxed(["ant"], [[4, 4, 60, 60], [30, 20, 90, 50]], [[0], [0]], task, 3),
        ]
    else:
        items = [*caption_batch(task), captioned(["fish"], task, 5)]
    losses, gradients = model_gradients(items)
    for found, theirs in in_processes(model_in_process, items):
        assert found == pytest.approx({name: value.item() for name, value in losses.items()}, rel=1e-5)
        assert set(theirs) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(torch.tensor(theirs[name]), gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("task", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_each_task(task, dtype):
    model = make_model(TrainedLetters()).train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses, grads = gradients(model, batch_of(task))
    assert set(losses) == LOSSES[task]
    assert all(value.dtype == torch.float32 and value.isfinite() and value > 0 for value in losses.values())
    assert grads["text_tower.weight"] > 0 and grads["backbone.stem.weight"] > 0
    assert model.counts[task] == len(batch_of(task))


def test_captions_reach_the_box_tower_through_the_deformable_module_only():
    with_module = make_model().train()
    torch.nn.init.normal_(with_module.head.deformable.offsets.weight, std=0.1)
    _, grads = gradients(with_module, caption_batch())
    assert grads["head.box_tower.0.weight"] > 0
    _, grads = gradients(make_model(deformable=False).train(), caption_batch())
    assert grads.get("head.box_tower.0.weight", 0.0) == 0.0 and "head.box_predictor.weight" not in grads


def test_grounding_trains_no_box_predictor():
    _, grads = gradients(make_model().train(), detection_batch("grounding"))
    assert "head.box_predictor.weight" not in grads and "head.quality_predictor.weight" not in grads


def test_deformable_module_starts_as_a_convolution_with_half_weights():
    module = DeformableModule(32)
    feature, guide = torch.randn(2, 32, 9, 7), torch.randn(2, 32, 9, 7)
    plain = torch.nn.functional.conv2d(feature, module.weight / 2, padding=1)
    torch.testing.assert_close(module(feature, guide), module.norm(plain).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spread", [0.0, 0.7, 6.0])
def test_the_cpu_path_equals_torchvisions_kernel(spread):
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 4, 7, 5), (2, 18, 7, 5), (2, 9, 7, 5), (6, 4, 3, 3), (6,)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    feature, offsets, mask, weight, bias = inputs
    seed = torch.randn(2, 6, 7, 5, generator=generator, dtype=torch.float64)
    ours = sampled_conv(feature, offsets * spread, mask, weight, bias)
    wanted = deform_conv2d(feature, offsets * spread, weight, bias, padding=1, mask=mask)
    torch.testing.assert_close(ours, wanted)
    for a, b in zip(torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(wanted, inputs, seed)):
        torch.testing.assert_close(a, b)


def test_offsets_move_what_is_sampled():
    module = DeformableModule(32, norm="")
    feature, guide = torch.randn(1, 32, 9, 7), torch.randn(1, 32, 9, 7)
    with torch.no_grad():
        module.offsets.bias[1:18:2] = 1.0  # every tap one pixel to the right (offsets are y, x)
    plain = torch.nn.functional.conv2d(feature, module.weight / 2, padding=1).relu()
    torch.testing.assert_close(module(feature, guide)[..., :-2], plain[..., 1:-1], rtol=1e-4, atol=1e-4)


def test_loss_of_pairs_is_the_literal_loss_of_the_selected_regions():
    settings = WordRegionLoss(temperature=0.3, label_smoothing=0.2)
    model = make_model(pairs=settings, pairs_weight=0.7, selection=RegionSelection(k=4)).train()
    items = caption_batch()
    regions = []
    original = model.select

    def spy(*args):
        regions.append(original(*args))
        return regions[-1]

    model.select = spy
    loss = model(items)["loss_words"]
    found, mask = regions[0]
    texts = [model.text_tower(item["concepts"]).double() for item in items]
    images = [row[keep].detach().double() for row, keep in zip(found, mask)]
    wanted = contrastive(images, texts, 0.3, 0.2, "text_to_image", "images", "closest")
    assert loss.item() == pytest.approx(0.7 * wanted.item(), rel=1e-4)
    assert all(2 <= n <= 4 for n in mask.sum(1).tolist())


def test_regions_do_not_come_from_the_padding():
    model = make_model(selection=RegionSelection(k=200, nms_threshold=1.0, candidates=5000)).train()
    small = captioned(["cat"], seed=3, size=32)
    wide = captioned(["dog"], seed=4, size=96)
    images = model.preprocess_image([small, wide])
    maps = list(model.backbone(images.tensor).values())
    predictions, anchors = model.head(maps), model.head.anchors(maps)
    words = encode_batch([["cat"], ["dog"]], model.text_tower)
    _, mask = model.select([["cat"], ["dog"]], words, images, predictions, anchors, model.selection)
    assert mask[0].sum() == sum((32 // s) ** 2 for s in STRIDES)
    assert mask[1].sum() == sum((96 // s) ** 2 for s in STRIDES)


def test_a_box_that_is_no_number_does_not_stop_caption_training():
    model = make_model().train()
    torch.nn.init.constant_(model.head.box_predictor.bias, float("nan"))
    assert model(caption_batch())["loss_words"].isfinite()  # captions train no box
    torch.nn.init.constant_(model.head.class_predictor.bias, float("nan"))
    assert model(caption_batch())["loss_words"].isnan()  # for the engine to save and to name


def test_selection_adds_nothing_per_image_to_the_backward_pass():
    def nodes(images):
        model = make_model(selection=RegionSelection(k=5)).train()
        concepts = [["cat", "dog"]] * images
        batch = model.preprocess_image([captioned(c, seed=i) for i, c in enumerate(concepts)])
        maps = list(model.backbone(batch.tensor).values())
        predictions, anchors = model.head(maps), model.head.anchors(maps)
        words = encode_batch(concepts, model.text_tower)
        regions, _ = model.select(concepts, words, batch, predictions, anchors, model.selection)
        found, waiting = set(), [regions.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in found:
                found.add(node)
                waiting += [following for following, _ in node.next_functions]
        return len(found)

    assert nodes(2) == nodes(5)


def test_largest_region_comes_first_for_the_largest_box_matching():
    model = make_model(pairs=WordRegionLoss(matching="largest_box"), selection=RegionSelection(k=5)).train()
    torch.nn.init.normal_(model.head.box_predictor.weight, std=0.5)
    items = caption_batch()
    images = model.preprocess_image(items)
    maps = list(model.backbone(images.tensor).values())
    predictions, anchors = model.head(maps), model.head.anchors(maps)
    concepts = [item["concepts"] for item in items]
    words = encode_batch(concepts, model.text_tower)
    regions, mask = model.select(concepts, words, images, predictions, anchors, model.selection)
    flat, embeddings = torch.cat(anchors), torch.cat(predictions.logits, 1)
    boxes = model.head.decode(predictions.flat_deltas()[0], flat)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, 64)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, 64)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    rows = [(embeddings[0] == region).all(1).nonzero()[0, 0] for region in regions[0][mask[0]]]
    areas = area[torch.stack(rows)]
    assert areas.tolist() == sorted(areas.tolist(), reverse=True)


def test_detection_learns_a_box():
    model = make_model(TrainedLetters(), head={"norm": "GN"}).train()
    items = [boxed(["cat", "dog"], [[8, 8, 40, 40], [56, 16, 88, 48]], [[0], [1]])]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(model(items).values()).backward()
        optimizer.step()
    model.eval()
    model.set_vocabulary(["dog", "cat"])
    found = model([{k: items[0][k] for k in ("image", "height", "width")}])[0]["instances"]
    best = {c: found[found.pred_classes == c].pred_boxes.tensor[0] for c in (0, 1)}
    torch.testing.assert_close(best[1], torch.tensor([8.0, 8, 40, 40]), atol=4, rtol=0)
    torch.testing.assert_close(best[0], torch.tensor([56.0, 16, 88, 48]), atol=4, rtol=0)
    boxes, scores = model.best_regions(items[0], ["cat", "dog"])
    torch.testing.assert_close(boxes[0], best[1], atol=4, rtol=0)
    torch.testing.assert_close(boxes[1], best[0], atol=4, rtol=0)
    assert scores.min() > 0.3


def test_images_without_boxes_train():
    model = make_model().train()
    losses = model([boxed(["cat", "dog"], [], [])])
    assert losses["loss_align"] > 0 and losses["loss_box"] == 0 and losses["loss_quality"] == 0
    losses = model([boxed([], [], [])])
    assert all(value == 0 and value.requires_grad for value in losses.values())


def test_cap_of_gathered_concepts_keeps_own_ones():
    model = make_model(max_gathered=1).train()
    torch.testing.assert_close(
        model(detection_batch())["loss_align"], make_model().train()(detection_batch())["loss_align"]
    )


def test_checkpointed_similarities_give_the_same_gradients():
    results = []
    for checkpointing in (False, True):
        model = make_model(TrainedLetters(), checkpointing=checkpointing).train()
        results.append(gradients(model, detection_batch())[1])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_definitions_are_read_in_detection_and_testing_but_not_in_captions():
    tower = FrozenTextTower(Letters())
    model = make_model(tower, definitions={"cat": "a small feline"}.get).train()
    model(detection_batch())
    seen = tower.encoder.texts
    assert "cat, a small feline" in seen and "dog" in seen and "cat" not in seen
    model(caption_batch("classification"))
    assert "cat" in seen
    model.set_vocabulary(["cat"])
    model.vocabulary_rows()
    assert model.sentence("cat") == "cat, a small feline"


@pytest.mark.parametrize("fused", [True, False])
def test_an_evaluation_after_a_step_takes_the_words_of_the_new_weights(fused):
    tower = TrainedLetters()
    model = make_model(tower)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        model.eval().set_vocabulary(["cat", "dog"])
        torch.testing.assert_close(model.vocabulary_rows(), tower.encode(["cat", "dog"]), rtol=0, atol=0)
        sum(model.train()(detection_batch()).values()).backward()
        model.encode_words(["cat", "dog"])
        optimizer.step()


def test_words_are_encoded_again_only_when_words_or_weights_change():
    tower = TrainedLetters()
    model = make_model(tower).eval()
    model.set_vocabulary(["cat", "dog"])
    first = model.vocabulary_rows()
    assert torch.equal(model.vocabulary_rows(), first) and len(tower.encoder.texts) == 2
    with torch.no_grad():
        tower.weight[0, 1] += 1.0
    assert not torch.equal(model.vocabulary_rows(), first) and len(tower.encoder.texts) == 4
    model.set_vocabulary(["bird"])
    assert model.vocabulary_rows().shape == (1, DIM)


def test_inference_is_detectron2s_contract():
    model = make_model(vocabulary=["cat", "dog", "bird"]).eval()
    items = [
        {"image": picture(height=64, width=96), "height": 128, "width": 192},
        {"image": picture(height=40, width=40)},
    ]
    with torch.no_grad():
        model.head.words.bias.fill_(0.0)
        outputs = model(items)
    found = outputs[0]["instances"]
    assert found.image_size == (128, 192) and outputs[1]["instances"].image_size == (40, 40)
    assert len(found) and found.pred_boxes.tensor[:, 2].max() <= 192 and found.pred_classes.max() <= 2
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    alone = model(items[:1])[0]["instances"]
    assert len(alone) == len(found)


def test_vocabulary_goes_back_to_the_first_one():
    model = make_model(vocabulary=["cat"])
    model.set_vocabulary(["dog", "bird"])
    assert model.vocabulary == ("dog", "bird")
    model.set_vocabulary(None)
    assert model.vocabulary == ("cat",)


def test_a_vocabulary_of_the_same_encoder_is_taken_as_it_is(tmp_path):
    vocabulary = Vocabulary.build(["cat", "dog"], Letters(), "photo", cache_dir=tmp_path)
    model = make_model()
    model.set_vocabulary(vocabulary)
    assert torch.equal(model.vocabulary_rows(), vocabulary.embeddings)
    with pytest.raises(ValueError, match="at least one name"):
        model.set_vocabulary([])
    assert torch.equal(model.vocabulary_rows(), vocabulary.embeddings)
    with pytest.raises(ValueError, match="comes from test:letters, not from trained:letters"):
        make_model(TrainedLetters()).set_vocabulary(vocabulary)


def test_words_that_are_none(caplog):
    model = make_model().eval()
    with pytest.raises(ValueError, match="call set_vocabulary"):
        model([{"image": picture()}])
    with pytest.raises(ValueError, match="at least one name"):
        model.set_vocabulary([])
    with pytest.raises(ValueError, match="name 1 of the vocabulary is empty"):
        model.set_vocabulary(["cat", " _ "])
    with pytest.raises(ValueError, match="not one string"):
        model.set_vocabulary("cat")
    with caplog.at_level(logging.WARNING):
        model.set_vocabulary(["cat", "dog", "cat"])
    assert "more than once: cat" in caplog.text and len(model.vocabulary_rows()) == 3


def test_batches_of_several_tasks_or_none_are_refused():
    model = make_model().train()
    with pytest.raises(ValueError, match=r"this one holds \['detection', 'pairs'\]"):
        model([detection_batch()[0], captioned(["cat"])])
    item = detection_batch()[0]
    del item["task"]
    with pytest.raises(ValueError, match="wrap the mapper"):
        model([item])


def test_captions_without_nouns_are_counted(caplog):
    model = make_model().train()
    with caplog.at_level(logging.WARNING):
        model(caption_batch())
    assert model.counts["without_nouns"] == 1 and "the dog" in caplog.text


def test_a_checkpoint_of_another_text_encoder_is_refused():
    state = make_model().state_dict()
    make_model().load_state_dict(state)
    other = FrozenTextTower(Letters())
    other.id = "test:other"
    with pytest.raises(VocabularyMismatch, match="text encoder 'test:letters'"):
        make_model(other).load_state_dict(state)


def test_a_checkpoint_of_before_opens():
    """The scale and bias of the words used to lie in the head itself."""
    source = make_model(similarity="cosine")
    state = {key.replace("head.words.", "head."): value for key, value in source.state_dict().items()}
    assert {"head.bias", "head.log_scale"} <= set(state)
    model = make_model(similarity="cosine")
    assert load_weights(model, state, complete=True).coverage == 1
    assert torch.equal(model.head.words.log_scale, source.head.words.log_scale)


def test_width_of_head_and_tower_must_agree():
    tower = FrozenTextTower(Letters())
    tower.dim = 7
    with pytest.raises(ValueError, match="embeds in 12 dimensions, the text tower in 7"):
        make_model(tower)


@pytest.mark.parametrize("task", ["detection", "pairs"])
def test_cosine_similarity_is_an_option(task):
    losses, grads = gradients(make_model(similarity="cosine").train(), batch_of(task))
    assert all(value.isfinite() for value in losses.values())
    assert ("head.words.log_scale" in grads) == (task == "detection")


def test_registered():
    assert META_ARCH_REGISTRY.get("DetCLIPv2").__name__ == "DetCLIPv2"
