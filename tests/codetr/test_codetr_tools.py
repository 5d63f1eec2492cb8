"""Every measurement runs from the command line on a small dataset and writes numbers and pictures."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from polydet.data import DatasetCard, card, register_card
from polydet.engine import CheckpointError, ConfigError, build_model, load_config, save_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import analyze_codetr  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config and two checkpoints of a tiny untrained model on three images of two squares."""
    folder = tmp_path_factory.mktemp("run")
    images, annotations = [], []
    for i in range(3):
        picture = np.full((96, 96, 3), 60, np.uint8)
        for x, y in ((8 + 8 * i, 8), (50, 50)):
            picture[y : y + 32, x : x + 32] = (200, 40 * i, 90)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": 1, "bbox": [x, y, 32, 32],
                 "area": 1024, "iscrowd": 0}
            )  # fmt: skip
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 96, "width": 96})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "squares.json").write_text(json.dumps(document))
    register_card(
        DatasetCard(
            "codetr_squares", json_file=str(folder / "squares.json"), image_root=str(folder), classes=("square",)
        )
    )
    cfg = load_config(ROOT / "configs/quickstart/codetr.py")
    cfg.dataloader.train.datasets = ["codetr_squares"]
    cfg.dataloader.test_datasets = ["codetr_squares"]
    cfg.dataloader.test.mapper.augmentations.update(short=96, max_size=96)
    cfg.model.heads = [{"name": "faster_rcnn", "options": {"fc_dims": [32]}}, "atss"]
    cfg.model.dim = 64
    cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 1
    cfg.model.share_heads = True
    save_config(cfg, folder / "config.yaml")
    for name, seed in (("a.pth", 0), ("b.pth", 1)):
        cfg.train.seed = seed
        torch.save({"model": build_model(cfg).state_dict()}, folder / name)
    yield folder
    del card._CARDS["codetr_squares"]
    DatasetCatalog.remove("codetr_squares")
    MetadataCatalog.remove("codetr_squares")


def analyze(measure, folder, checkpoints, output):
    run = ["untrained", str(folder / "config.yaml"), *(str(folder / c) for c in checkpoints)]
    return analyze_codetr.main([measure, "--run", *run, "--images", "2", "--output", str(output)])


@pytest.mark.parametrize(
    ("measure", "pictures"),
    [
        ("features", ["iof_iob.png", "score_maps.png"]),
        ("attention", ["iof_iob.png", "score_maps.png"]),
        ("instability", ["instability.png"]),
        ("distance", ["distance.png"]),
        ("queries", ["queries.png"]),
    ],
)
def test_measure(measure, pictures, trained, tmp_path):
    result = analyze(measure, trained, ["a.pth", "b.pth"], tmp_path)["untrained"]
    assert all((tmp_path / measure / name).stat().st_size > 1000 for name in pictures)
    assert json.loads((tmp_path / measure / "result.json").read_text())["untrained"] == result
    if measure in ("features", "attention"):
        assert (
            len(result["iof"]) == 101
            and result["iof"][-1] == 0
            and 0 <= result["iof_at_iob_0.2"] <= 1
            and result["iof"][0] == 1
            and (measure == "features" or len(set(result["iof"])) > 20)  # untrained features: one value everywhere
        )
    elif measure == "instability":
        assert len(result) == 1 and 0 < result[0] <= 4  # two objects, at most four queries change
    elif measure == "distance":
        assert set(result["average"]) == {"0:faster_rcnn", "1:atss"} and min(result["average"].values()) > 0
    else:
        assert 0 < result["positive"] < 1 and 0 < result["negative"] < 1


def test_what_was_written_is_said(trained, tmp_path, capsys):
    analyze("instability", trained, ["a.pth", "b.pth"], tmp_path)
    printed = capsys.readouterr().out
    assert "untrained: " in printed and f"{tmp_path}/instability/instability.png" in printed


def test_other_models_are_refused(trained, tmp_path):
    cfg = load_config(trained / "config.yaml")
    cfg.model.heads = []
    save_config(cfg, tmp_path / "config.yaml")
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "bare.pth")
    run = ["--run", "K=0", str(tmp_path / "config.yaml"), str(tmp_path / "bare.pth"), "--output", str(tmp_path)]
    for measure, what in (("distance", "auxiliary heads"), ("queries", "positive queries")):
        with pytest.raises(ConfigError, match=f"K=0: its CoDETR has no {what}"):
            analyze_codetr.main([measure, *run])
    for name, match in (("quickstart/aligndet", "no model of its own but stages"), ("finetune/no", "no config, file")):
        with pytest.raises(ConfigError, match=match):
            analyze_codetr.main(["features", "--run", "x", name, "x.pth", "--output", str(tmp_path)])


def test_mistakes_are_explained(trained, tmp_path):
    with pytest.raises(ConfigError, match="at least two epochs"):
        analyze("instability", trained, ["a.pth"], tmp_path)
    with pytest.raises(CheckpointError, match=r"none.pth' does not exist"):
        analyze("features", trained, ["none.pth"], tmp_path)
