"""Images with more objects than a metric or a model has detections: said, and mended by max_dets."""

import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from polydet.data import DatasetCard, DatasetError, card, load_card, register_card
from polydet.engine.config import ConfigError, apply_overrides, load_config
from polydet.engine.evaluate import check_evaluators, evaluate
from polydet.evaluation import EVALUATORS, evaluator_of

OBJECTS = 192


@pytest.fixture
def crowded(tmp_path, monkeypatch):
    """Registers a card over two images, one with 192 objects of one class and some crowds, one with 3."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(card, "_CARDS", dict(card._CARDS))
    images = [{"id": i, "file_name": f"{i}.png", "coco_url": f"http://x/val/{i}.png"} for i in (1, 2)]
    images = [{**image, "height": 200, "width": 400, "neg_category_ids": []} for image in images]
    images = [{**image, "not_exhaustive_category_ids": []} for image in images]
    places = [(1, i) for i in range(OBJECTS)] + [(2, i) for i in range(3)]
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "bbox": [20 * (i % 20), 20 * (i // 20), 10 + i % 5, 12]}
        for n, (image, i) in enumerate(places, 1)
    ]
    annotations = [{**a, "area": a["bbox"][2] * a["bbox"][3]} for a in annotations]
    categories = [{"id": 1, "name": "ear", "frequency": "f"}]
    (tmp_path / "ann.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )

    def register(**more):
        return register_card(DatasetCard("ears", "ann.json", ".", **more), overwrite=True).name

    return register


class Perfect(nn.Module):
    """Answers with the annotations of the image, the first `most` of them."""

    def __init__(self, most=10**6):
        super().__init__()
        self.most = most

    def forward(self, inputs):
        outputs = []
        for record in inputs:
            boxes = torch.tensor([a["bbox"] for a in record["annotations"]])[: self.most]
            boxes[:, 2:] += boxes[:, :2]
            found = Instances((200, 400), pred_boxes=Boxes(boxes), scores=torch.linspace(0.9, 0.5, len(boxes)))
            found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
            outputs.append({"instances": found})
        return outputs


def one_batch(dataset):
    records = [{**record, "image": torch.zeros(3, 2, 2)} for record in load_card(dataset)]
    return [records]


def ap(folder, evaluators=(), most=10**6):
    loader = {"test_datasets": ["ears"], "evaluators": dict(evaluators), "test": L(one_batch)(dataset="")}
    cfg = OmegaConf.create({"dataloader": loader}, flags={"allow_objects": True})
    check_evaluators(cfg)
    return evaluate(cfg, Perfect(most), folder)["ears"]["bbox"]


@pytest.mark.parametrize(
    ("form", "limit", "beyond"),
    [("coco", None, 92), ("lvis", 150, 42), ("lvis", None, 0)],
)
def test_objects_beyond_the_limit_are_said(crowded, tmp_path, caplog, form, limit, beyond):
    crowded(format=form, evaluator=form, max_dets=limit)
    found = ap(tmp_path)
    text = (tmp_path / "results.txt").read_text()
    if not beyond:  # LVIS counts 300 of an image
        assert found["AP"] == pytest.approx(100) and "max_dets" not in found and "max_dets" not in text
        return
    assert found["AP"] < 80 and found["objects_beyond_max_dets"] == beyond
    assert json.loads((tmp_path / "results.json").read_text())["ears"]["bbox"]["objects_beyond_max_dets"] == beyond
    assert f"{beyond} objects cannot be found" in text
    assert "image id 1 has 192 objects" in caplog.text and "set max_dets to 192 or more" in caplog.text


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_perfect_detections_reach_100_where_the_card_or_the_command_says_how_many_count(
    crowded, tmp_path, caplog, form
):
    crowded(format=form, evaluator=form, max_dets=192)
    assert ap(tmp_path)["AP"] == pytest.approx(100)
    crowded(format=form, evaluator=form, max_dets=50)
    found = ap(tmp_path, {"ears": {"max_dets": 200}})
    assert found["AP"] == pytest.approx(100) and "objects_beyond_max_dets" not in found
    assert "objects" not in caplog.text


def test_a_models_own_limit_is_said(crowded, tmp_path, caplog):
    crowded(max_dets=300)
    assert ap(tmp_path)["AP"] == pytest.approx(100) and "gives at most" not in caplog.text
    ap(tmp_path, most=2)
    assert "the model gives at most 2 detections an image, but image id 1 has 192 objects" in caplog.text
    assert "2 images have more" in caplog.text


def test_wrong_limits_are_refused_before_anything_is_trained(crowded, tmp_path):
    crowded()
    assert evaluator_of("ears", {"max_dets": 300}) == ("coco", {"max_dets": 300})
    assert evaluator_of("ears", "lvis_fixed") == ("lvis_fixed", {})
    for wrong, match in (
        ({"kind": "lvis_fixed", "max_dets": 300}, "'lvis_fixed' of card 'ears' cannot count max_dets=300"),
        ({"max_dets": 0}, "max_dets=0"),
        ({"max_dets": "many"}, "max_dets='many'"),
        ({"most": 3}, "no setting 'most'"),
        ("tea leaves", "tea leaves"),
    ):
        with pytest.raises(ConfigError, match=match):
            ap(tmp_path, {"ears": wrong})
    with pytest.raises(ConfigError, match="(?s)eers.*did you mean.*'ears'"):
        ap(tmp_path, {"eers": "coco"})
    with pytest.raises(DatasetError, match="max_dets is True, not a number of detections"):
        crowded(max_dets=True)
    assert crowded(evaluator="openimages", max_dets=300) and evaluator_of("ears", "multilabel") == ("multilabel", {})
    assert set(EVALUATORS) == {"coco", "lvis", "lvis_fixed", "openimages", "multilabel"}


def test_the_command_sets_evaluators_without_a_plus(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("train = dict(output_dir='x')\ndataloader = dict(evaluators=dict(b='coco'))\n")
    cfg = load_config(path, ["dataloader.evaluators.a.max_dets=300", "dataloader.evaluators.b=lvis"])
    assert cfg.dataloader.evaluators == {"a": {"max_dets": 300}, "b": "lvis"}
    assert load_config(path, ["dataloader.evaluators={c: multilabel}"]).dataloader.evaluators == {"c": "multilabel"}
    assert load_config(path, ["dataloader.groups.mine=[a, b]"]).dataloader.groups == {"mine": ["a", "b"]}
    with pytest.raises(ConfigError, match="did you mean 'dataloader.evaluators'"):
        apply_overrides(cfg, ["dataloader.evaluator={a: coco}"])
    with pytest.raises(ConfigError, match=r"dataloader\.evaluators\.b is a value"):
        apply_overrides(cfg, ["dataloader.evaluators.b.max_dets=3"])
