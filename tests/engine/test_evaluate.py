"""Evaluation on datasets with other classes, tables of results, pictures."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from omegaconf import OmegaConf
from torch import nn

from polydet.data import DatasetCard, register_card
from polydet.engine.evaluate import (
    ClassMismatch,
    RestrictedModel,
    evaluate,
    joint_labels,
    results_table,
    write_results,
)
from polydet.engine.pictures import draw_predictions, save_curves, save_panels, with_labels_inside
from polydet.text import LabelSpace

SPACE = LabelSpace({"a": ["cat", "dog"], "b": ["Dog", "bird", "traffic_light"]})


def test_labels_are_those_of_the_same_dataset_or_by_name(caplog):
    assert joint_labels(SPACE, "b_val", ["Dog", "bird", "traffic_light"]) == [2, 3, 4]
    assert joint_labels(SPACE, "other", ["traffic light", "cow", "dog"]) == [4, -1, 1]
    assert "no label for 1 of 3 classes" in caplog.text and "cow" in caplog.text
    with pytest.raises(ClassMismatch, match="none of the 2 classes of zoo"):
        joint_labels(SPACE, "zoo", ["lion", "bear"])


def test_a_restricted_model_renumbers_and_drops():
    class Fixed(nn.Module):
        def forward(self, inputs):
            instances = Instances((8, 8), pred_boxes=Boxes(torch.rand(4, 4)), scores=torch.arange(4.0))
            instances.pred_classes = torch.tensor([0, 4, 3, 1])
            return [{"instances": instances}]

    found = RestrictedModel(Fixed(), [4, -1, 1], 5)([{}])[0]["instances"]
    assert found.pred_classes.tolist() == [0, 2] and found.scores.tolist() == [1.0, 3.0]


def test_results_are_a_table_and_json_without_nan(tmp_path):
    results = {
        "x": {"bbox": {"AP": 12.34, "AP50": 50.0, "APl": float("nan"), "AP-cat": 3.0}},
        "y": {"bbox": {"AP": 1.0}},
    }
    write_results(results, tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["x"]["bbox"] == {"AP": 12.34, "AP50": 50.0, "APl": None, "AP-cat": 3.0}
    table = results_table(results)
    assert "12.3" in table and "AP-cat" not in table and "APs" not in table


def test_pictures_are_written(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "total_loss": 1.0 / (i + 1), "lr": 0.1, "x/bbox/AP50": float(i)} for i in range(50)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_curves(path, tmp_path / "curves.png")
    image = np.zeros((10, 12, 3), np.uint8)
    save_panels([("one", image, image), ("two", image, image)], tmp_path / "panels.png")
    for name in ("curves.png", "panels.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG" and (tmp_path / name).stat().st_size > 5000
    save_curves(tmp_path / "absent.json", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("label", ["a cat on the mat 0.53", "many words " * 12])
@pytest.mark.parametrize("corner", [(150, 5), (150, 118), (0, 119), (2, 0)])
def test_labels_at_the_edges_are_drawn_whole(label, corner):
    canvas = Visualizer(np.full((120, 160, 3), 90, np.uint8), scale=2)
    canvas.draw_text(label, corner, color="w", horizontal_alignment="left")
    drawn = canvas.get_output()

    def sticks_out():
        renderer = drawn.canvas.get_renderer()
        text, frame = drawn.ax.texts[0].get_window_extent(renderer), drawn.ax.get_window_extent(renderer)
        return max(frame.x0 - text.x0, text.x1 - frame.x1, frame.y0 - text.y0, text.y1 - frame.y1)

    assert sticks_out() > 1 or corner == (2, 0)
    picture = with_labels_inside(drawn)
    assert sticks_out() < 0.01 and (picture.max(2) > 90).any() and picture.shape == (240, 320, 3)


class Counts(DatasetEvaluator):
    """Counts the images that it sees."""

    def __init__(self, kind):
        self.kind, self.seen = kind, 0

    def process(self, inputs, outputs):
        self.seen += len(inputs)

    def evaluate(self):
        return {str(self.kind): {"AP": float(self.seen)}}


def two_batches(dataset):
    return [[{"image_id": 1}, {"image_id": 2}], [{"image_id": 3}]]


@pytest.mark.parametrize(("kinds", "tasks"), [(["coco", "multilabel"], {"coco", "multilabel"}), ("lvis", {"lvis"})])
def test_a_dataset_may_have_several_evaluators(monkeypatch, tmp_path, kinds, tasks):
    register_card(DatasetCard("several", "x.json", "x", classes=("a",)), overwrite=True)
    monkeypatch.setitem(evaluate.__globals__, "build_evaluator", lambda dataset, folder, kind: Counts(kind))
    monkeypatch.setitem(evaluate.__globals__, "AnswersPerImage", lambda dataset: DatasetEvaluator())  # no data here
    loader = {"test_datasets": ["several"], "evaluators": {"several": kinds}, "test": L(two_batches)(dataset="")}
    cfg = OmegaConf.create({"dataloader": loader}, flags={"allow_objects": True})
    results = evaluate(cfg, nn.Identity(), tmp_path)
    assert results["several"] == {task: {"AP": 3.0} for task in tasks}


def test_pictures_make_records_of_the_pictured_images_only(monkeypatch):
    class Table(list):
        def __init__(self):
            super().__init__({"image_id": 2 * i, "annotations": [{}] * (i > 0)} for i in range(9))
            self.made = []

        def image_id(self, index):
            return super().__getitem__(index)["image_id"]

        def __iter__(self):
            return map(self.__getitem__, range(len(self)))

        def __getitem__(self, index):
            self.made.append(index)
            return super().__getitem__(index)

    table = Table()
    monkeypatch.setitem(draw_predictions.__globals__, "load_card", lambda name: table)
    monkeypatch.setitem(draw_predictions.__globals__, "_panel", lambda model, item, record, *rest: record["image_id"])
    loader = [[{"image_id": i} for i in (0, 3, 8)], [{"image_id": 2}, {"image_id": 4}]]
    assert draw_predictions(nn.Identity(), loader, "x", 2) == [8, 2] and table.made == [0, 4, 1]
