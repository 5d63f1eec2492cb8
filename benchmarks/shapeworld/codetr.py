"""Directional study of Co-DETR on ShapeWorld: K = 0, 1, 2 on plain Deformable-DETR, and the four cells of table 9.

    python -m benchmarks.shapeworld.codetr --work /tmp/study                     everything, three seeds
    python -m benchmarks.shapeworld.codetr --work /tmp/study --arms k0 k1 --seeds 0    (finished runs are kept)
    python -m benchmarks.shapeworld.codetr --work /tmp/study --report            table of what is there

All arms train plain Deformable-DETR at quickstart size, from scratch, for equally many steps. K = 1 is ATSS, K = 2 adds
Faster R-CNN; `head_only` and `queries_only` are table 9's other cells (k0 and k1 are its first and last). Every run
has a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig
from tabulate import tabulate

from benchmarks.shapeworld.report import spread, write
from codetr import CoDETR
from polydet.engine import load_config, run

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart" / "detr" / "deformable_detr_refine.py"
DATASET = "shapes_coco_val"
ATSS = {"name": "atss", "options": {"channels": 64}}
RCNN = {
    "name": "faster_rcnn",
    "options": {"fc_dims": [128], "proposals_before_nms": [300, 300], "proposals": 200, "rois_per_image": 64},
}
ARMS = {
    "k0": [],
    "k1": [ATSS],
    "k2": [RCNN, ATSS],
    "head_only": [{**ATSS, "queries": False}],
    "queries_only": [{**ATSS, "loss": False}],
}
PAPER = {"k0": 37.1, "k1": 42.3, "k2": 42.9, "head_only": 41.6, "queries_only": 40.5}  # tables 2 and 9, 12 epochs


def config(args: argparse.Namespace, arm: str, seed: int) -> DictConfig:
    """One run."""
    cfg = load_config(CONFIG)
    cfg.model.decoder.refine = False  # the plain one; its own quickstart begins with another stage
    cfg.model.share_heads = True
    cfg.model._target_ = CoDETR
    cfg.model.heads = ARMS[arm]
    cfg.model.lambda_2 = args.lambda_2
    cfg.model.collaboration = {"head_embedding": "scalar"}
    cfg.dataloader.test.batch_size = 10
    cfg.train.update(max_iter=args.steps, pictures=0, seed=seed, output_dir=str(folder(args, arm, seed)))
    cfg.train.checkpoint_period = 100
    return cfg


def folder(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """Where a run lies."""
    return args.work / f"{arm}_{seed}"


def train(args: argparse.Namespace) -> None:
    """Run what is asked for and not there yet, seed by seed; an interrupted run goes on where it stopped."""
    for seed in args.seeds:
        for arm in args.arms:
            if (folder(args, arm, seed) / "DONE").is_file():
                continue
            command = [sys.executable, "-m", "benchmarks.shapeworld.codetr", "--child", arm, "--seeds", str(seed)]
            command += ["--work", str(args.work), "--steps", str(args.steps), "--lambda-2", str(args.lambda_2)]
            subprocess.run(command, check=True)


def measure(path: Path) -> dict[str, float]:
    """AP, AP50, seconds an iteration and peak memory of a finished run."""
    scores = json.loads((path / "results.json").read_text())[DATASET]["bbox"]
    lines = [json.loads(line) for line in (path / "metrics.json").read_text().splitlines()]
    times = [line["time"] for line in lines if "time" in line]
    memory = json.loads((path / "run.json").read_text())["peak_host_memory_mib"]
    return {"AP": scores["AP"], "AP50": scores["AP50"], "seconds": statistics.median(times), "MiB": memory}


def collect(args: argparse.Namespace) -> dict[str, dict[int, dict[str, float]]]:
    """Finished runs by arm and seed."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for arm in ARMS:
        paths = {seed: folder(args, arm, seed) for seed in range(100)}
        found[arm] = {s: measure(p) for s, p in paths.items() if (p / "DONE").is_file()}
    return found


def report(args: argparse.Namespace) -> str:
    """A row an arm, with the difference to K = 0 of the same seed."""
    found = collect(args)
    rows = []
    for arm, runs in found.items():
        if not runs:
            continue
        shared = [s for s in runs if s in found["k0"]]
        gains = [runs[s]["AP"] - found["k0"][s]["AP"] for s in shared]
        columns = [spread([r[key] for r in runs.values()], d) for key, d in (("AP", 1), ("AP50", 1), ("seconds", 2))]
        columns.append(spread([r["MiB"] for r in runs.values()], 0))
        gain = f"{spread(gains)} ({', '.join(f'{g:+.1f}' for g in gains)})" if gains else ""
        rows.append([arm, len(runs), *columns, gain, f"{PAPER[arm] - PAPER['k0']:+.1f}"])
    headers = [
        "arm",
        "seeds",
        "AP",
        "AP50",
        "s / iteration",
        "peak MiB",
        "AP over k0 (by seed)",
        "paper, COCO 12 epochs",
    ]
    return tabulate(rows, headers=headers, tablefmt="github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lambda-2", type=float, default=2.0)
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, help="write the numbers as json and the table as md there")
    parser.add_argument("--child", default="", choices=["", *ARMS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run(config(args, args.child, args.seeds[0]), resume=True)
        return
    if not args.report:
        train(args)
    text = report(args)
    print(text)
    title = f"# Co-DETR on ShapeWorld\n\n{args.steps} steps of plain Deformable-DETR at quickstart size.\n\n"
    write(args.output, {"steps": args.steps, "runs": collect(args)}, title + text)


if __name__ == "__main__":
    main()
