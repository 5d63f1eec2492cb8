"""``configs/scaledet_swinb.py`` itself, on pictures in the real directory layout and formats; and without data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydet.data.shapeworld.real_layout import write_real_layout

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = [  # size, encoder and iterations; a high threshold, since everything is a detection before training
    "dataloader.train.mapper.augmentations.size=64",
    "dataloader.test.mapper.augmentations.short=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "model.backbone.bottom_up.weights=null",
    "model.text_encoder={_target_: polydet.text.MiniLMEncoder}",
    "model.templates=a",
    "model.roi_heads.test_score_thresh=0.75",
    "train.max_iter=2",
    "train.log_period=1",
    "train.amp.dtype=float32",
    "train.pictures=0",
]


def run(data, output, *overrides):
    command = [sys.executable, ROOT / "tools" / "lazyconfig_train_net.py", "--config-file"]
    command += [ROOT / "configs" / "scaledet_swinb.py", f"train.output_dir={output}", *overrides]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data), "POLYDET_CACHE": str(Path(data).parent / "cache")}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("real") / "data"
    write_real_layout(root, train=6, val=1, datasets=("coco", "lvis", "objects365", "openimages"))
    return root


def test_the_headline_run_trains_and_evaluates_on_the_real_layout(real, tmp_path):
    done = run(real, tmp_path, *SMALL)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    records = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [r["iteration"] for r in records if "total_loss" in r] == [0, 1]
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"lvis_v1_val", "coco_2017_val", "objects365_v2_val", "openimages_v6_val"}
    assert "openimages" in done.stdout + done.stderr


def test_without_the_datasets_it_stops_with_the_files_it_looked_for(tmp_path):
    done = run(tmp_path / "nothing", tmp_path / "out")
    text = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in text
    wanted = ("lvis_v1_train.json", "instances_train2017.json", "zhiyuan_objv2_train.json", "oidv6-train-annotations")
    for name in wanted:
        assert name in text, text[-3000:]
