"""Two tiny runs, and processes in which something happens to copies of them; see `benchmarks/faults.py`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig

from polydet.data.shapeworld.generate import VERSION, write_part
from polydet.engine import load_config, run, save_config
from polydet.engine.progress import read_metrics
from polydet.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("ConfigError", "CheckpointError", "RunError", "NonFiniteError", "DatasetError", "ModelFileError", "OSError")
MODELS, STEPS, LIMIT = ("detr", "rcnn"), 4, 240  # seconds a case may take
TIMING = {"time", "data_time", "eta_seconds"}


def tiny(kind: str) -> Any:
    """A run of four steps on pictures of 64 pixels: evaluations, a best checkpoint, an average of the weights."""
    cfg = load_config(ROOT / "configs" / "quickstart" / "detr" / "dino.py")
    if kind == "rcnn":
        cfg.model = faster_rcnn()
    cfg.model.backbone.bottom_up.update(name="resnet18", weights=None, freeze_at=0)
    cfg.model.backbone.bottom_up.model_kwargs = dict(channels=(8, 16, 24, 32))
    train, test = cfg.dataloader.train, cfg.dataloader.test
    for part in (train, test):
        part.mapper.augmentations.update(short=64, max_size=96)
    train.update(datasets=["shapes_coco_train"], total_batch_size=2, num_workers=1)
    test.update(num_workers=1, batch_size=3)
    cfg.dataloader.test_datasets = ["shapes_coco_val"]
    cfg.train.update(device="cpu", max_iter=STEPS, eval_period=2, checkpoint_period=1, max_checkpoints=9, pictures=0)
    cfg.train.update(log_period=1, best_metric="shapes_coco_val/bbox/AP")
    cfg.train.ema.update(enabled=True, decay=0.5)
    if kind == "detr":
        cfg.model.dim = 32
        cfg.model.queries.num_queries = 10
        for part in (cfg.model.encoder, cfg.model.decoder):
            part.num_layers = 1
            part.layer.ffn_dim = 32
    return cfg


def faster_rcnn() -> Any:
    model = LazyConfig.load(str(ROOT / "configs" / "common" / "models" / "faster_rcnn.py")).model
    model.backbone.out_channels = 16
    model.proposal_generator.update(pre_nms_topk=(50, 20), post_nms_topk=(20, 10))
    model.roi_heads.update(batch_size_per_image=16)
    model.roi_heads.box_head.update(conv_dims=[], fc_dims=[32])
    return model


class Campaign:
    """The undisturbed runs, and what a case does to a copy of them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.data = work / "datasets"
        folder = self.data / "shapeworld" / VERSION / "coco"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            write_part("coco", folder, {"train": 8, "val": 4})
        for kind in MODELS:
            save_config(tiny(kind), work / f"{kind}.yaml")

    def config(self, kind: str, folder: Path) -> Any:
        return load_config(self.work / f"{kind}.yaml", [f"train.output_dir={folder}"])

    def prepare(self) -> None:
        """Reference runs, and runs that are killed after step 2."""
        for kind in MODELS:
            for name, step in (("whole", 0), ("killed", 4)):
                folder = self.work / f"{kind}_{name}"
                shutil.rmtree(folder, ignore_errors=True)

                def call(folder: Path = folder, kind: str = kind, step: int = step) -> None:
                    if step:
                        before(Trainer, "run_step", step, lambda: os.kill(os.getpid(), signal.SIGKILL))
                    run(self.config(kind, folder))

                code, text = in_child(call, self.work / f"{kind}_{name}.log")
                if code != (-signal.SIGKILL if step else 0):
                    sys.exit(f"the undisturbed run of {kind} fails: {text[-2000:]}")

    def is_equal(self, kind: str, folder: Path) -> str:
        """ "", or what differs from the undisturbed run."""
        whole = self.work / f"{kind}_whole"
        one, two = (torch.load(path / "model_final.pth", weights_only=True) for path in (whole, folder))
        for key, value in one["model"].items():
            if not torch.equal(value, two["model"][key]):
                return f"weights {key}"
        if repr(one["trainer"]["optimizer"]) != repr(two["trainer"]["optimizer"]):
            return "optimiser"
        if records(whole) != records(folder):
            return "metrics.json"
        if (whole / "results.json").read_bytes() != (folder / "results.json").read_bytes():
            return "results.json"
        return "" if (folder / "DONE").is_file() else "no DONE"


def records(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k not in TIMING} for r in read_metrics(folder / "metrics.json")]


def before(owner: Any, name: str, call: int, act: Callable[[], None]) -> None:
    """Let a function do ``act`` first at its ``call``th call."""
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == call:
            act()
        return original(*args, **options)

    setattr(owner, name, wrapped)


def in_child(call: Callable[[], None], log: Path, limit: float = LIMIT) -> tuple[int, str]:
    """(exit code, output) of a call in a process of its own; a polydet error is its last line, as the command's."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            sys.stdout = sys.stderr = log.open("w", buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            call()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            if not set(kinds) & set(NAMED):
                traceback.print_exc()
            print(f"\n{'NAMED' if set(kinds) & set(NAMED) else 'RAW'} {type(error).__name__}: {error}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + limit
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124, "RAW: it hangs"
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers that are left
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
