"""Directional study of DetCLIPv2 on ShapeWorld: do captions teach names that no box carries?

    python -m benchmarks.shapeworld.detclipv2 --work /tmp/study                       every arm, three seeds
    python -m benchmarks.shapeworld.detclipv2 --work /tmp/study --arms captions --seeds 0
    python -m benchmarks.shapeworld.detclipv2 --work /tmp/study --report              table of what is there

`captions` is the quickstart. `none` sees the same batches with boxes and phrases and no caption; `none_long` takes as
many steps as `captions`. Numbers are AP50 of the last checkpoint on names with boxes (shapes_coco_val) and on names
that occur in captions only (shapes_novel_val).
"""

import argparse
import json
from pathlib import Path

from omegaconf import DictConfig
from tabulate import tabulate

from benchmarks.shapeworld.report import spread, write
from benchmarks.shapeworld.stages import train_stage
from polydet.engine import load_config, run

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "detclipv2.py"
SETS = {"names with boxes": "shapes_coco_val", "names in captions only": "shapes_novel_val"}
ARMS = ("captions", "none", "none_long")


def config_of(arm: str, args: argparse.Namespace, seed: int) -> DictConfig:
    """The quickstart, with or without captions."""
    cfg = train_stage(load_config(QUICKSTART), args.work)
    sources = cfg.dataloader.train.sources
    if args.steps:
        cfg.train.max_iter = args.steps
    if arm != "captions":
        batches = {name: source.batches_per_epoch for name, source in sources.items()}
        share = 1 - batches["pairs"] / sum(batches.values())
        sources.pairs.batches_per_epoch = 0
        if arm == "none":
            cfg.train.max_iter = round(cfg.train.max_iter * share)
    cfg.train.update(seed=seed, pictures=0, output_dir=str(args.work / f"{arm}_{seed}"))
    return cfg


def collect(args: argparse.Namespace) -> dict[str, dict[int, dict[str, float]]]:
    """AP50 of finished runs by arm, seed and set."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for arm in ARMS:
        for seed in args.seeds:
            path = args.work / f"{arm}_{seed}" / "results.json"
            if path.is_file():
                results = json.loads(path.read_text())
                values = {name: results[card]["bbox"]["AP50"] for name, card in SETS.items()}
                found.setdefault(arm, {})[seed] = values
    return found


def report(args: argparse.Namespace) -> str:
    """A row an arm: AP50, mean and spread over the seeds that are there."""
    rows = []
    for arm, seeds in collect(args).items():
        columns = [[values[name] for values in seeds.values()] for name in SETS]
        by_seed = ", ".join(f"{value:.1f}" for value in columns[-1])
        rows.append([arm, len(seeds), *map(spread, columns), by_seed])
    return tabulate(rows, headers=["arm", "seeds", *SETS, "by seed"], tablefmt="github")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="of the captions arm; 0: the quickstart's")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, help="write the numbers as json and the table as md there")
    args = parser.parse_args()
    if not args.report:
        for seed in args.seeds:
            for arm in args.arms:
                run(config_of(arm, args, seed), resume=True)
    text = report(args)
    print(text)
    write(args.output, collect(args), f"# DetCLIPv2 on ShapeWorld, AP50\n\n{text}")


if __name__ == "__main__":
    main()
