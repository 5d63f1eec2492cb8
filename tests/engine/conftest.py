"""A ShapeWorld of a few pictures, and runs of the real tool on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydet.data.shapeworld.generate import VERSION, write_part

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = [
    "dataloader.train.datasets=[shapes_coco_train,shapes_lvis_train]",
    "dataloader.test_datasets=[shapes_coco_val]",
    "dataloader.train.total_batch_size=4",
    "dataloader.train.num_workers=1",
    "dataloader.test.num_workers=0",
    # nothing random and no statistics that depend on how the batch is split
    "model.backbone.bottom_up.norm=frozen",
    "model.roi_heads.batch_size_per_image=512",
    "model.roi_heads.positive_fraction=1.0",
    "train.max_iter=6",
    "train.checkpoint_period=2",
    "train.log_period=1",
    "train.pictures=2",
]


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    for part in ("coco", "lvis"):
        folder = root / "shapeworld" / VERSION / part
        folder.mkdir(parents=True)
        write_part(part, folder, {"train": 24, "val": 6})
    return root


@pytest.fixture
def tool(small_world, tmp_path_factory):
    """Starts ``tools/lazyconfig_train_net.py`` on the quickstart config at toy size."""
    cache = tmp_path_factory.getbasetemp() / "cache"

    def start(output, *overrides, launcher=(), options=(), wait=True):
        command = [*(launcher or [sys.executable]), ROOT / "tools" / "lazyconfig_train_net.py"]
        command += ["--config-file", ROOT / "configs" / "quickstart" / "scaledet.py", *options]
        command += [*TINY, f"train.output_dir={output}", *overrides]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(small_world), "POLYDET_CACHE": str(cache)}
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if not wait:
            return process
        output_text, _ = process.communicate(timeout=500)
        return process.returncode, output_text

    return start
