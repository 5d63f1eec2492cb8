"""tools/analyze.py: what it counts, by hand; a row with masks from the command line."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from small_rows import FAMILIES
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("analyze_tool", ROOT / "tools" / "analyze.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, batch):
        return self.conv(torch.stack([item["image"] for item in batch]).float())


def test_flops_are_multiply_adds_and_parameters_are_split(tool):
    model = OneConvolution()
    flops, skipped = tool.count_flops(model, tool.made_up_batch((16, 24), 2, 3, "any"))
    assert flops == 3 * 3 * 3 * 8 * 16 * 24 and not skipped  # of one image
    model.conv.weight.data = torch.zeros(8, 3, 300, 300)
    assert tool.count_parameters(model)[0] == ["conv", "2.16", "2.16"]
    assert tool.count_parameters(model)[1] == ["frozen", "0.00", "0.00"]


def test_a_row_with_masks_is_counted_and_timed(anywhere, tool, tmp_path, monkeypatch, capsys):
    row, overrides = FAMILIES["Mask R-CNN"]
    report = tmp_path / "report.json"
    words = [row, "--size", "64", "96", "--steps", "1", "--json", str(report), *overrides]
    monkeypatch.setattr(sys, "argv", ["analyze.py", *words])
    tool.main()
    numbers = json.loads(report.read_text())
    parts = [float(part["all"]) for name, part in numbers["parameters"].items() if name != "total"]
    assert sum(parts) == pytest.approx(float(numbers["parameters"]["total"]["all"]), abs=0.02)
    assert numbers["gflops"] > 0.1 and min(numbers["timing"].values()) > 0
    assert "multiply-adds for one image of 64x96" in capsys.readouterr().out


def test_a_model_that_trains_on_more_than_boxes_is_timed_with_its_loader(anywhere, tool, tmp_path, monkeypatch, capsys):
    row, overrides = FAMILIES["DetCLIPv2"]
    words = [row, "--size", "64", "96", "--steps", "1", "--loader", *overrides]
    monkeypatch.setattr(sys, "argv", ["analyze.py", *words])
    tool.main()
    assert "train_step_s" in capsys.readouterr().out


def test_words_need_no_download(anywhere, tool, tmp_path, monkeypatch):
    """METR costs more than its DINO by the category extraction; the paper says 4 G (table 4)."""
    gflops = []
    for row in ("metr/table2_dino_r50_12ep", "metr/table2_metr_r50_12ep"):
        report = tmp_path / "report.json"
        monkeypatch.setattr(sys, "argv", ["analyze.py", row, "--size", "96", "128", "--json", str(report)])
        tool.main()
        gflops.append(json.loads(report.read_text())["gflops"])
    assert gflops[0] < gflops[1] < 1.3 * gflops[0]
