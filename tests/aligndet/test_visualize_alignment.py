"""The tool behind figures 4 and 5, from the command line."""

import json
import runpy
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from aligndet_detectors import build, scene

from aligndet import analysis
from aligndet.pretrainer import AlignDet
from polydet.data import DatasetCard, register_card

TOOL = Path(__file__).parents[2] / "tools" / "visualize_alignment.py"
CONFIG = """
from detectron2.config import LazyCall as L
from aligndet_detectors import build
from aligndet.pretrainer import AlignDet

model = L(AlignDet)(adapter=L(build)(kind="{kind}"), total_steps=10)
dataloader = dict(train=dict(), test_datasets=[])
optimizer = lr_multiplier = dict()
train = dict(seed=0, device="cpu", output_dir="unused")
"""


@pytest.fixture
def annotated(tmp_path):
    """Eight images of two annotated classes."""
    images, annotations = [], []
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), scene(i))
        images.append({"id": i, "file_name": f"{i}.png", "height": 120, "width": 160})
        for k, x in enumerate((5, 80)):
            box = {"bbox": [x, 10, 60, 70], "area": 4200, "iscrowd": 0}
            annotations.append({"id": 2 * i + k + 1, "image_id": i, "category_id": k + 1, **box})
    names = [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}]
    document = {"images": images, "annotations": annotations, "categories": names}
    (tmp_path / "a.json").write_text(json.dumps(document))
    card = DatasetCard(f"visualize_{tmp_path.name}", str(tmp_path / "a.json"), str(tmp_path))
    return register_card(card, overwrite=True).name


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_numbers_are_written_and_images_are_not_kept(kind, annotated, tmp_path, monkeypatch):
    """A detector that does not rank boxes still gets its first picture; one image at a time is in memory."""
    (tmp_path / "pretrain.py").write_text(CONFIG.format(kind=kind))
    torch.save({"model": AlignDet(build(kind), 10).state_dict()}, tmp_path / "model_final.pth")
    alive, most, read = [], [0], analysis.annotated_views

    def watched(*args):
        for view in read(*args):
            alive.append(weakref.ref(view["image"]))
            yield view
            most[0] = max(most[0], sum(ref() is not None for ref in alive))

    monkeypatch.setattr(analysis, "annotated_views", watched)
    arguments = ["--config-file", str(tmp_path / "pretrain.py"), "--weights", str(tmp_path / "model_final.pth")]
    arguments += ["--dataset", annotated, "--classes", "left", "right", "--short", "96", "--images", "1"]
    monkeypatch.setattr(sys, "argv", ["tool", *arguments, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stop.value.code == 0
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert set(numbers["silhouette"]) == {"before", "after"} and np.isfinite(list(numbers["silhouette"].values())).all()
    assert ("centres_in_objects" in numbers) == (tmp_path / "out" / "centres.png").is_file() == (kind == "fcos")
    assert most[0] <= 2
