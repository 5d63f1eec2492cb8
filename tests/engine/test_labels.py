"""Class names travel with weights: cards whose names or order changed are matched by name or refused."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import instantiate

from polydet import model_zoo
from polydet.data import register_card
from polydet.data.card import find_card
from polydet.engine import CheckpointError
from polydet.engine.build import initialise
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.labels import label_space, labels_of
from polydet.text import LabelSpace

NAMES = ("circle", "ring", "square", "star")
TURNED = ("star", "circle", "square", "ring")


def config(*overrides):
    small = ["model.backbone.bottom_up.weights=null", "dataloader.train.datasets=[bench]", *overrides]
    return model_zoo.get_config("quickstart/codetr", small)


def card(names):
    register_card(
        replace(find_card("shapes_coco_train"), name="bench", classes=names, category_ids=None), overwrite=True
    )


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a model that was trained on NAMES, and its class rows by name."""
    card(NAMES)
    cfg = config()
    model = instantiate(cfg.model)
    with torch.no_grad():
        model.class_heads[-1].weight.normal_()
    Checkpointer(model, str(tmp_path), facts={"labels": labels_of(label_space(cfg))}).save("model_final")
    return tmp_path / "model_final.pth", dict(zip(NAMES, model.class_heads[-1].weight))


def test_a_label_space_survives_being_plain():
    for merge in ("none", "name"):
        space = LabelSpace({"a": ["Cat", "dog"], "b": ["cat", "bird"]}, merge)
        plain = labels_of(space)
        again = LabelSpace({name: list(names) for name, names in plain["datasets"]}, plain["merge"])
        assert again.names == space.names and again.owner.tolist() == space.owner.tolist()
        assert all(again.mapping(d).tolist() == space.mapping(d).tolist() for d in "ab")


@pytest.mark.parametrize("complete", [False, True])
def test_rows_follow_the_names_of_a_card_in_another_order(trained, complete, caplog):
    path, rows = trained
    card(TURNED)
    cfg = config(f"train.init_checkpoint={path}")
    model = instantiate(cfg.model)
    initialise(cfg, model, complete=complete)
    for name, row in zip(TURNED, model.class_heads[-1].weight):
        torch.testing.assert_close(row, rows[name])
    assert "another order" in caplog.text
    opened = model_zoo.get("quickstart/codetr", path, overrides=["dataloader.train.datasets=[bench]"])
    for name, row in zip(TURNED, opened.class_heads[-1].weight):
        torch.testing.assert_close(row, rows[name])


def test_an_evaluation_refuses_a_class_that_was_not_trained(trained):
    path, rows = trained
    card((*NAMES[:3], "sphere"))
    cfg = config(f"train.init_checkpoint={path}")
    with pytest.raises(CheckpointError, match=r"trained on 4 classes .*has no sphere"):
        initialise(cfg, instantiate(cfg.model), complete=True)
    with pytest.raises(CheckpointError, match="has no sphere"):
        model_zoo.get("quickstart/codetr", path, overrides=["dataloader.train.datasets=[bench]"])
    model = instantiate(cfg.model)
    initialise(cfg, model)  # a training may start from it
    torch.testing.assert_close(model.class_heads[-1].weight[1], rows["ring"])


def test_a_resumed_run_refuses_cards_in_another_order(trained):
    path, _ = trained
    card(TURNED)
    cfg = config()
    checkpointer = Checkpointer(instantiate(cfg.model), str(path.parent), facts={"labels": labels_of(label_space(cfg))})
    with pytest.raises(CheckpointError, match="another order"):
        checkpointer.load(str(path))


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (NAMES[:3], True, "names 3 classes .*trained on 4"),
        (("a", "b", "c", "d"), True, "names 4 classes .*trained on 4"),
        (NAMES[:2], False, "no tensor of the checkpoint has 2 rows"),
        (("a", "b", "c", "d"), False, "none of them is the same"),
    ],
)
def test_wrong_class_names_of_a_checkpoint_are_an_error(trained, names, labels, message):
    path, _ = trained
    if not labels:
        torch.save({"model": torch.load(path)["model"]}, path)
    cfg = config(f"train.init_checkpoint={path}", f"train.init.class_names=[{','.join(names)}]")
    with pytest.raises(CheckpointError, match=message):
        initialise(cfg, instantiate(cfg.model))
