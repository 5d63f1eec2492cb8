"""Whole runs of the tool: what they leave, resumed ones, two processes, and clear ends of bad ones."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor

from polydet import model_zoo
from polydet.engine import ConfigError, load_config, run
from polydet.engine.progress import read_metrics
from polydet.model_file import read_header

ROOT = Path(__file__).resolve().parent.parent.parent


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], msg=lambda m, key=key: f"{key}: {m}", **tolerance)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of an uninterrupted run, made by the first test that asks."""
    return tmp_path_factory.mktemp("finished")


def run_once(tool, folder):
    if not (folder / "DONE").exists():
        code, text = tool(folder)
        assert code == 0, text[-3000:]
    return folder


def test_a_run_leaves_everything(tool, finished):
    folder = run_once(tool, finished)
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml", "config_resolved.txt", "metrics.json", "results.json", "results.txt", "curves.png",
        "predictions.png", "model_final.pth", "model.safetensors", "last_checkpoint", "log.txt", "run.json",
    } <= names  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["shapes_coco_val"]["bbox"]["AP50"] <= 100
    records = [r for r in read_metrics(folder / "metrics.json") if "total_loss" in r]
    assert [r["iteration"] for r in records] == list(range(6))
    assert all(r["total_loss"] > 0 and r["lr"] > 0 for r in records)
    assert json.loads((folder / "run.json").read_text())["peak_host_memory_mib"] > 100


def test_its_file_is_evaluated_as_the_run_was(tool, finished, small_world, tmp_path, monkeypatch):
    folder = run_once(tool, finished)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_world))
    cfg = load_config(folder / "model.safetensors", [f"train.output_dir={tmp_path}", "train.pictures=0"])
    run(cfg, eval_only=True)
    assert (tmp_path / "results.json").read_text() == (folder / "results.json").read_text()
    other = load_config(folder / "model.safetensors", [f"train.output_dir={tmp_path}"])
    other.dataloader.train.datasets = ["shapes_lvis_train"]
    with pytest.raises(ConfigError, match=r"train\.init_checkpoint=FILE"):
        run(other)


def test_operating_points_are_chosen_into_its_file(tool, finished, small_world, tmp_path, monkeypatch, capsys):
    folder = run_once(tool, finished)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_world))
    points = runpy.run_path(str(ROOT / "tools" / "operating_points.py"))
    output = tmp_path / "points.safetensors"
    arguments = [str(folder), "--dataset", "shapes_coco_train", "--iou", "0.2", "--output", str(output)]
    points["main"](points["parse_args"](arguments))
    chosen = read_header(output)["operating"]
    printed = capsys.readouterr().out
    assert chosen and all(name in printed for name in chosen)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        every, kept = (model_zoo.get(output, operating=o)([{"image": image}])[0]["instances"] for o in (False, True))
    names = read_header(output)["classes"]
    least = torch.tensor([chosen.get(name, 0.0) for name in names])
    assert len(kept) == int((every.scores >= least[every.pred_classes]).sum()) < len(every)


ALONE = """
import socket, sys
def refused(*args, **kwargs):
    raise OSError("no network here")
socket.socket.connect = refused
import torch
from polydet import model_zoo
from polydet.data import card
card._CARDS.clear()
model = model_zoo.get(sys.argv[1])
found = model([{"image": torch.load(sys.argv[2])}])[0]["instances"]
torch.save({"boxes": found.pred_boxes.tensor, "scores": found.scores, "classes": found.pred_classes}, "found.pth")
"""


def test_its_file_alone_gives_the_same_boxes_in_an_empty_folder(tool, finished, tmp_path):
    folder = run_once(tool, finished)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.save(image, tmp_path / "image.pth")
    shutil.copy(folder / "model.safetensors", tmp_path / "colleague.safetensors")
    (tmp_path / "empty").mkdir()
    hidden = {k: v for k, v in os.environ.items() if k not in ("DETECTRON2_DATASETS", "POLYDET_CACHE")}
    environment = {**hidden, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-c", ALONE, "../colleague.safetensors", "../image.pth"]
    subprocess.run(command, cwd=tmp_path / "empty", env=environment, check=True)
    found = torch.load(tmp_path / "empty" / "found.pth")
    model = model_zoo.get(folder / "config.yaml", weights=folder / "model_final.pth")
    with torch.no_grad():
        expected = model([{"image": image}])[0]["instances"]
    assert len(expected)
    torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, rtol=0, atol=0)
    torch.testing.assert_close(found["scores"], expected.scores, rtol=0, atol=0)
    assert torch.equal(found["classes"], expected.pred_classes)


def test_a_killed_run_resumes_to_the_same_weights_and_metrics(tool, finished, tmp_path):
    folder = run_once(tool, finished)
    process = tool(tmp_path, wait=False)
    deadline = time.time() + 400
    while not (tmp_path / "model_0000003.pth").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "DONE").exists()
    code, text = tool(tmp_path, options=["--resume"])
    assert code == 0, text[-3000:]
    assert "training from iteration" in text and "training from iteration 0" not in text
    assert_same(weights(tmp_path), weights(folder), rtol=0, atol=0)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads((folder / "results.json").read_text())
    assert stripped(tmp_path) == stripped(folder)


def stripped(folder):
    timing = {"time", "data_time", "eta_seconds"}
    return [{k: v for k, v in r.items() if k not in timing} for r in read_metrics(folder / "metrics.json")]


@pytest.mark.parametrize("how", ["launch", "torchrun"])
def test_two_processes_equal_one(tool, finished, tmp_path, how):
    folder = run_once(tool, finished)
    if how == "launch":
        code, text = tool(tmp_path, options=["--processes", "2"])
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        code, text = tool(tmp_path, launcher=torchrun)
    assert code == 0, text[-3000:]
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 2
    one, two = (read_metrics(path / "metrics.json") for path in (folder, tmp_path))
    for a, b in zip(one, two):
        if "total_loss" in a:
            assert b["total_loss"] == pytest.approx(a["total_loss"], rel=2e-3), a["iteration"]
    assert one[0]["total_loss"] == pytest.approx(two[0]["total_loss"], rel=1e-5)
    results = [json.loads((path / "results.json").read_text()) for path in (tmp_path, folder)]
    found, expected = (r["shapes_coco_val"]["bbox"]["AP50"] for r in results)
    assert found == pytest.approx(expected, abs=0.5)


def test_evaluating_alone_gives_the_same_results(tool, finished, tmp_path):
    folder = run_once(tool, finished)
    code, text = tool(tmp_path, f"train.init_checkpoint={folder / 'model_final.pth'}", options=["--eval-only"])
    assert code == 0, text[-3000:]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=3", "did you mean 'train.max_iter'"),
        ("dataloader.test_datasets=[coco_2017_val]", "instances_val2017.json"),
        ("dataloader.train.total_batch_size=3", "ConfigError"),
        ("train.init_checkpoint=absent.pth", "absent.pth"),
    ],
)
def test_bad_runs_end_at_once_with_a_sentence(tool, tmp_path, override, message):
    extra = ["train.grad_accumulation=2"] if "batch_size" in override else []
    code, text = tool(tmp_path, override, *extra)
    assert code != 0 and message in text, text[-2000:]
    assert "Traceback" not in text
    assert not (tmp_path / "metrics.json").exists()


def test_an_output_folder_that_cannot_be_written_is_named(tool, tmp_path):
    (tmp_path / "file").write_text("")
    code, text = tool(tmp_path / "file" / "run")
    assert code != 0 and "train.output_dir" in text and "Traceback" not in text


def test_the_run_in_an_app_with_words_never_trained_on(tool, finished, small_world, tmp_path):
    folder = run_once(tool, finished)
    source = next((small_world / "shapeworld").rglob("*.jpg"))
    image = tmp_path / "photo.jpg"
    shutil.copy(source, image)
    command = [sys.executable, ROOT / "examples" / "app.py", "--run", folder, "--image", image, "--min-score", "0"]
    done = subprocess.run([*command, "--words", "ball", "brick"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (
        lines[-1].endswith(f"drawn in {image.with_suffix('.found.jpg')}") and image.with_suffix(".found.jpg").exists()
    )
    assert {line.split()[1] for line in lines[:-1]} <= {"ball", "brick"} and len(lines) > 1


def test_default_predictor_is_the_model_of_the_zoo(tool, finished, small_world):
    folder = run_once(tool, finished)
    cfg = model_zoo.get_cfg(folder)
    predictor = DefaultPredictor(cfg)
    assert type(predictor).__module__.startswith("detectron2")
    image = cv2.imread(str(next((small_world / "shapeworld").rglob("*.jpg"))))
    found = predictor(image)["instances"]
    assert found.image_size == image.shape[:2]
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    assert len(names) == len(predictor.model.vocabulary) and max(found.pred_classes.tolist()) < len(names)
    model = model_zoo.get(folder)
    rgb = torch.as_tensor(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
    with torch.no_grad():
        again = model([{"image": rgb, "height": image.shape[0], "width": image.shape[1]}])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, again.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    predictor.model.set_vocabulary(["honeycomb"])
    assert set(predictor(image)["instances"].pred_classes.tolist()) <= {0}
