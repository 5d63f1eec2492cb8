"""Released files, whole: what a file in the authors' names, opened by its name alone, detects, and what they detect."""

import pytest
import torch
from golden_check import check_detections, detect
from golden_file import load_golden

from polydet import model_zoo

NARROW = ("encoder.num_layers=1", "decoder.num_layers=2")
RESNET = (*NARROW, "backbone.bottom_up.model_kwargs={base_width: 16}")
FILES = {
    "released_dino": ("detr/dino_4scale_r50", [*RESNET, "queries.num_queries=150"], "model"),
    "released_deformable": ("detr/deformable_detr_r50", [*RESNET, "queries.num_queries=100"], "model"),
    "released_deformable_two_stage": (
        "detr/deformable_detr_r50_two_stage",
        [*RESNET, "queries.num_queries=60"],
        "model",
    ),
    "released_dab": ("detr/dab_detr_r50", [*RESNET, "queries.num_queries=16"], "model"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_released_file_detects_what_its_authors_do(name, tmp_path):
    golden = load_golden(name)
    config, changes, key = FILES[name]
    path = tmp_path / "checkpoint.pth"
    torch.save({key: golden.state(), "epoch": 11}, path)
    model = model_zoo.get(config, weights=path, overrides=[f"model.{change}" for change in changes]).double()
    check_detections(golden, "padded", detect(model, golden.inputs("padded")))
