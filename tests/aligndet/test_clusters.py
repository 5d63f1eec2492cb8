import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from pycocotools.coco import COCO
from safetensors.torch import save_file

from aligndet.clusters import box_features, cluster
from aligndet.proposal_columns import ProposalColumns

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 230)]


class Means(torch.nn.Module):
    """A backbone whose feature is the mean colour at stride 8."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image):
        return {"res3": torch.nn.functional.avg_pool2d(image, 8) * self.scale}


@pytest.fixture
def coloured(tmp_path):
    """Nine images, each with three plain squares, and their boxes as proposals; one image has none."""
    boxes, truth = [], []
    for i in range(9):
        image = np.full((96, 160, 3), 128, np.uint8)
        for k, x in enumerate((8, 56, 104)):
            colour = COLOURS[(i + k) % 3]
            image[16:64, x : x + 40] = colour[::-1]
            boxes.append([x, 16, 40, 48])
            truth.append((i + k) % 3)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    cv2.imwrite(str(tmp_path / "9.png"), np.zeros((96, 160, 3), np.uint8))
    columns = ProposalColumns(
        boxes=np.float32(boxes),
        labels=np.zeros(27, np.uint16),
        offsets=np.concatenate([np.arange(0, 28, 3), [27]]),
        image_ids=np.arange(10),
        sizes=np.tile(np.int32([96, 160]), (10, 1)),
        file_names=[f"{i}.png" for i in range(10)],
        info={"num_labels": 1},
    )
    return columns, tmp_path, np.asarray(truth)


def test_clusters_are_the_colours(coloured):
    columns, root, truth = coloured
    result = cluster(columns, root, Means(), num_clusters=3, dim=2, sample=20, feature="res3")
    pairs = set(zip(truth.tolist(), result.labels.tolist()))
    assert len(pairs) == 3  # one cluster a colour, one colour a cluster
    again = cluster(columns, root, Means(), num_clusters=3, dim=2, sample=20, feature="res3")
    np.testing.assert_array_equal(result.labels, again.labels)
    np.testing.assert_array_equal(result.boxes, columns.boxes)


def test_features_are_those_of_the_box(coloured):
    columns, root, truth = coloured
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for row, features in box_features(columns, range(10), root, Means(), "res3"):
        for k in range(3):
            want = (torch.tensor(COLOURS[truth[3 * row + k]]) - mean) / std
            np.testing.assert_allclose(features[k], want, atol=0.25)  # RoIAlign mixes in cells beyond the border
    assert row == 8  # the image without proposals is passed over


def test_too_few_proposals_are_refused(coloured):
    columns, root, _ = coloured
    with pytest.raises(ValueError, match="27 proposals cannot make 100 clusters"):
        cluster(columns, root, Means(), num_clusters=100, feature="res3")


def test_tool_writes_numbered_categories(coloured, tmp_path, monkeypatch):
    columns, root, _ = coloured
    columns.save(tmp_path / "p.columns")
    state = timm.create_model("resnet10t").state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "w.safetensors")
    arguments = ["tool", "--proposals", str(tmp_path / "p"), "--output", str(tmp_path / "q"), "--root", str(root)]
    arguments += ["--backbone", "resnet10t", "--weights", str(tmp_path / "w.safetensors"), "--clusters", "4"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(__file__).parents[2] / "tools" / "cluster_proposals.py"), run_name="__main__")
    assert stop.value.code == 0
    names = [c["name"] for c in COCO(str(tmp_path / "q.json")).dataset["categories"]]
    assert names == ["cluster_1", "cluster_2", "cluster_3", "cluster_4"]
    assert ProposalColumns.load(tmp_path / "q.columns").labels.max() < 4
