"""Does every member of the DETR family learn?  AP50 on ShapeWorld beside the same model untrained and on false labels.

    python -m benchmarks.shapeworld.detr --work /tmp/study                              every member
    python -m benchmarks.shapeworld.detr --work /tmp/study --members dino --arms trained
    python -m benchmarks.shapeworld.detr --work /tmp/study --report --output benchmarks/results/detr_shapeworld

`trained` is the member's quickstart; `untrained` is its first step, evaluated; `shuffled` trains on boxes whose classes
were drawn at random, so that finding boxes is not enough.  Finished runs are kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from tabulate import tabulate

from benchmarks.shapeworld.report import write
from benchmarks.shapeworld.stages import train_stage
from polydet.data.card import find_card
from polydet.engine import load_config, run

CONFIGS = Path(__file__).parents[2] / "configs" / "quickstart" / "detr"
MEMBERS = sorted(path.stem for path in CONFIGS.glob("*.py"))
ARMS = ("trained", "untrained", "shuffled")
TRAINING, DATASET = "shapes_coco_train", "shapes_coco_val"


class FalseLabels:
    """A mapper whose ground truth keeps its boxes and gets classes at random, the same ones whenever an image returns.

    Args:
        mapper: the mapper that reads records. num_classes: classes are drawn from ``0 .. num_classes - 1``.
    """

    def __init__(self, mapper: Any, num_classes: int) -> None:
        self.mapper, self.num_classes = mapper, num_classes

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        sample = self.mapper(record)
        if sample is not None:
            labels = sample["instances"].gt_classes
            generator = torch.Generator().manual_seed(int(record["image_id"]))
            sample["instances"].gt_classes = torch.randint(self.num_classes, labels.shape, generator=generator)
        return sample


def config(args: argparse.Namespace, member: str, arm: str) -> DictConfig:
    """One run."""
    cfg = load_config(CONFIGS / f"{member}.py")
    if "stages" in cfg:
        cfg = train_stage(cfg, args.work)
    if args.steps:
        cfg.train.max_iter = args.steps
    if arm == "untrained":
        cfg.train.max_iter = 1
    if arm == "shuffled":
        names = find_card(TRAINING).classes or ()
        loader = cfg.dataloader.train
        loader.mapper = L(FalseLabels)(mapper=loader.mapper, num_classes=len(names))
    cfg.train.update(seed=args.seed, pictures=0, output_dir=str(folder(args, member, arm)))
    return cfg


def folder(args: argparse.Namespace, member: str, arm: str) -> Path:
    """Where a run lies."""
    return args.work / f"{member}-{arm}-{args.seed}"


def collect(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """``{member: {arm: {AP, AP50, steps}}}`` of finished runs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for member in MEMBERS:
        for arm in ARMS:
            path = folder(args, member, arm)
            if not (path / "results.json").is_file():
                continue
            metrics = json.loads((path / "results.json").read_text())[DATASET]["bbox"]
            lines = [json.loads(line) for line in (path / "metrics.json").read_text().splitlines()]
            steps = 1 + max(int(line["iteration"]) for line in lines if "total_loss" in line)
            values = {"AP": metrics["AP"] or 0.0, "AP50": metrics["AP50"] or 0.0, "steps": steps}
            found.setdefault(member, {})[arm] = values
    return found


def report(args: argparse.Namespace) -> str:
    """A row a member."""
    rows = []
    for member, arms in collect(args).items():
        trained = arms.get("trained", {})
        scores = [f"{arms[arm]['AP50']:.1f}" if arm in arms else "" for arm in ARMS]
        extra = [f"{trained['AP']:.1f}", int(trained["steps"])] if trained else [""] * 2
        rows.append([member, *scores, *extra])
    headers = ["member", *(f"AP50 {arm}" for arm in ARMS), "AP trained", "steps"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--members", nargs="+", default=MEMBERS, choices=MEMBERS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="0: the quickstart's")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, help="write the numbers as json and the table as md there")
    args = parser.parse_args()
    for member in () if args.report else args.members:
        for arm in args.arms:
            run(config(args, member, arm), resume=True)
    text = report(args)
    print(text)
    write(args.output, collect(args), text)


if __name__ == "__main__":
    main()
