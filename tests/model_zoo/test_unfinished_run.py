"""The folder of a run that is not finished opens where its card is not known: its checkpoint knows the classes."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from polydet import model_zoo
from polydet.data import DatasetCard, DatasetError, register_card
from polydet.data.card import find_card, forget_card
from polydet.engine.config import save_config
from polydet.engine.labels import label_space, labels_of

NAMES = ("frog", "toad", "newt")


@pytest.fixture
def run(tmp_path):
    """A folder with a config and one periodic checkpoint, and the weights in it."""
    register_card(DatasetCard("pond_train", "pond.json", "pond", classes=NAMES), overwrite=True)
    cfg = model_zoo.get_config("quickstart/codetr", ["dataloader.train.datasets=[pond_train]"])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    save_config(cfg, tmp_path / "config.yaml")
    torch.save({"model": model.state_dict(), "labels": labels_of(label_space(cfg))}, tmp_path / "model_0000009.pth")
    forget_card("pond_train")
    yield tmp_path, model
    forget_card("pond_train")


def test_an_unfinished_run_opens_without_its_card(run):
    folder, model = run
    with pytest.raises(DatasetError):
        find_card("pond_train")
    opened = model_zoo.get(folder)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in opened.state_dict().items())
    cfg = model_zoo.get_cfg(folder)
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes == list(NAMES)
    mine = DatasetCard("pond_train", "real.json", "pond", classes=NAMES)
    assert register_card(mine) is find_card("pond_train")  # the real one takes the stand-in's place
