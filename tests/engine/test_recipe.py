"""Recipes: what follows from a card's boxes, what wins, and that an ordinary config is left."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from polydet.data import DatasetCard, DatasetError, data_statistics, register_card
from polydet.engine import ConfigError, distributed, load_config
from polydet.engine.config import flatten, save_config
from polydet.engine.recipe_rules import RULES, Facts
from polydet.engine.trust import plain_config
from polydet.model_zoo.zoo import config_root

SCALEDET = config_root() / "finetune" / "scaledet.py"


def write_card(folder, name, boxes, size=(480, 360), classes=("cell",), images=6):
    """A card of grey images, every one with the same boxes (x, y, w, h)."""
    (folder / name).mkdir(parents=True)
    document = {"images": [], "annotations": [], "categories": [{"id": i, "name": c} for i, c in enumerate(classes)]}
    for i in range(images):
        Image.new("RGB", size, "gray").save(folder / name / f"{i}.jpg")
        document["images"].append({"id": i, "file_name": f"{i}.jpg", "width": size[0], "height": size[1]})
        for box in boxes:
            number = len(document["annotations"])
            document["annotations"].append(
                {
                    "id": number,
                    "image_id": i,
                    "category_id": number % len(classes),
                    "bbox": box,
                    "area": 1,
                    "iscrowd": 0,
                }
            )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    register_card(DatasetCard(name, str(path), str(folder / name)), overwrite=True)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    grid = [[40 * (i % 10) + 5, 40 * (i // 10) + 5, 30, 30] for i in range(20)]
    write_card(folder, "many_small", grid, classes=("red cell", "platelet"))
    write_card(folder, "one_large", [[40, 20, 300, 280]], classes=("raccoon",))
    write_card(folder, "other_names", [[40, 20, 300, 280]], classes=("raccoon", "bear"))


def decide(card, speed="fast", **chosen):
    facts = Facts(data_statistics([card]), speed, {"batch": 4, "lr": 1e-3, "visits": 300}, chosen=dict(chosen))
    return facts.get


def test_statistics_are_those_of_the_files(cards):
    many = data_statistics(["many_small", "one_large"])
    assert (many.images, len(many.boxes), many.labels) == (12, 126, 3)
    assert many.objects_per_image(1.0) == 20
    np.testing.assert_allclose(many.sides(180, 1000)[0], [15, 15])
    np.testing.assert_allclose(many.sides(360, 240)[-1], [150, 140])  # the long side decides
    assert data_statistics(["one_large", "other_names"]).shared_names == ("raccoon",)


def test_small_objects_get_fine_levels_and_large_ones_small_images(cards):
    small, large = decide("many_small"), decide("one_large")
    assert (small("levels")[0], large("levels")[0]) == ("p2", "p3")
    assert small("short") > large("short") == 192
    assert small("strides") == [4, 8, 16, 32, 64] and small("roi_scales") == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert small("rois") > large("rois") and small("queries") == large("queries") == 50
    assert large("steps") > small("steps")  # small images are cheap
    assert small("proposals")[1] >= 4 * 20


@pytest.mark.parametrize("card", ["many_small", "one_large"])
def test_first_boxes_are_as_large_as_objects(cards, card):
    """The mean side that the bias stands for lies within a factor 2 of the objects' on the levels that see them."""
    get = decide(card)
    data = data_statistics([card])
    side = data.sides(get("short"), get("max_size"))[0].mean()
    half = np.hypot(*data.sides(get("short"), get("max_size"))[0]) / 2
    seen = [s for s, (low, high) in zip(get("strides"), get("sizes_of_interest")) if low <= half <= high]
    assert seen and all(0.5 < 2 * get("box_bias") * stride / side < 2 for stride in seen)
    anchors = np.array(get("anchor_sizes")).ravel()
    assert np.abs(np.log2(anchors / side)).min() < 0.6  # an octave apart: one of them is near


def test_given_quantities_are_what_the_others_follow_from(cards):
    assert decide("many_small", batch=16)("lr") == pytest.approx(2e-3)
    assert decide("many_small", batch=16)("steps") < decide("many_small")("steps")
    assert decide("many_small", finest=3)("strides") == [8, 16, 32, 64]


def load(*overrides, card="many_small"):
    return load_config(SCALEDET, [f"dataloader.train.datasets=[{card}]", *overrides])


def test_overrides_win_and_an_ordinary_config_is_left(cards, tmp_path):
    cfg = load("optimizer.lr=3e-4", "recipe.speed=fast", "model.proposal_generator.head.box_bias=2.0")
    assert cfg.optimizer.lr == 3e-4 and cfg.model.proposal_generator.head.box_bias == 2.0
    said = "\n".join(cfg.source.recipe)
    assert said.startswith("many_small at speed=fast: 6 images, 120 boxes, 2 labels\n")
    assert "optimizer.lr = 0.0003: given" in said
    assert "model.roi_heads.label_loss.soft_weight = 0.0: 2 labels of one card" in said
    assert "recipe" not in cfg and "auto" not in [v for k, v in flatten(cfg).items() if k != "train.device"]
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    found, expected = plain_config(again), plain_config(cfg)
    for config in (found, expected):  # one was loaded from another file; its recipe is already decided
        config["source"] = config["source"]["file"]
    assert found == expected


def test_speed_gpu_is_the_large_model(cards):
    cfg = load("recipe.speed=gpu")
    assert cfg.model.backbone.bottom_up.name == "resnet50.tv_in1k" and cfg.model.backbone.out_channels == 256
    assert cfg.train.amp.dtype == "bfloat16" and cfg.train.eval_period > 0 and cfg.train.max_iter > 100


def test_weights_to_start_from_decide_the_size(cards):
    cfg = load("recipe.speed=fast", "train.init_checkpoint=released.pth")
    assert cfg.model.backbone.bottom_up.name == "resnet50.tv_in1k" and cfg.model.backbone.bottom_up.weights is None
    assert cfg.model.proposal_generator.strides == [8, 16, 32, 64, 128] and cfg.model.backbone.out_channels == 256
    assert cfg.optimizer.lr == pytest.approx(load("recipe.speed=fast").optimizer.lr / 4)
    assert "all parts are trained" in "\n".join(cfg.source.recipe)


def test_several_cards_share_no_negatives(cards):
    cfg = load("recipe.speed=fast", card="one_large,other_names")
    assert cfg.model.roi_heads.label_loss.hl_scope == "own_dataset"


def test_processes_that_decide_differently_stop_with_the_key(cards, monkeypatch):
    """Each process resolves the recipe; the one that sees no GPU would train another model."""
    one, again = flatten(load()), flatten(load())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    other = flatten(load())
    kept = []
    monkeypatch.setattr(distributed.comm, "all_gather", lambda plain: kept.append(plain) or kept)
    for settings in (one, again):
        distributed.refuse_disagreement(settings)
    message = r"is '?[\w.]+'? in process 0 and '?[\w.]+'? in process 2: their files, environments or GPUs differ"
    with pytest.raises(ConfigError, match=message):
        distributed.refuse_disagreement(other)


def test_mistakes_are_named(cards):
    with pytest.raises(DatasetError, match=r"dataloader\.train\.datasets=\[my_train\]"):
        load_config(SCALEDET)
    with pytest.raises(ConfigError, match=r"recipe\.speed must be auto, fast or gpu, not 'slow'"):
        load("recipe.speed=slow")
    with pytest.raises(ConfigError, match=r"recipe\.keys\.magic is no quantity"):
        load("+recipe.keys.magic=train.seed")
    with pytest.raises(ConfigError, match=r"no key 'optimizer\.rate'"):
        load("recipe.keys.lr=optimizer.rate")


def test_every_rule_gives_a_value_and_a_reason(cards):
    for speed in ("fast", "gpu"):
        facts = Facts(data_statistics(["one_large"]), speed, {"batch": 4, "lr": 1e-3, "visits": 300})
        for quantity in RULES:
            facts.get(quantity)
        assert all(facts.reasons[quantity] for quantity in RULES)
