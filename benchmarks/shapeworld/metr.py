"""Directional study of METR on ShapeWorld: joint against single, with against without category extraction,
pre-trained against not.

    python -m benchmarks.shapeworld.metr --work /tmp/study                          everything, three seeds
    python -m benchmarks.shapeworld.metr --work /tmp/study --arms joint --seeds 0   one run (finished ones are kept)
    python -m benchmarks.shapeworld.metr --work /tmp/study --report                 table of what is there

Arms see each dataset equally often: `coco` and `lvis` train N steps on one dataset, `joint` and `no_cem` 2 N steps on
both.  `scratch` and `pretrained` train M steps on shapes_coco, the latter from the weights of `lvis`, whose labels are
other words; `dino_scratch` and `dino_pretrained` do the same with a DINO.  Numbers are AP of the last checkpoint.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from tabulate import tabulate

from benchmarks.shapeworld.report import spread, write
from polydet.data import label_space_of
from polydet.engine import load_config, run

CONFIGS = Path(__file__).parents[2] / "configs" / "quickstart"
COCO, LVIS = "shapes_coco", "shapes_lvis"
METRICS = {COCO: f"{COCO}_val/bbox/AP", LVIS: f"{LVIS}_val/bbox/AP"}
# (name, dataset, arm, arm it is compared with)
QUESTIONS = [
    ("joint - single", COCO, "joint", "coco"),
    ("joint - single", LVIS, "joint", "lvis"),
    ("with - without CEM", COCO, "joint", "no_cem"),
    ("with - without CEM", LVIS, "joint", "no_cem"),
    ("METR pre-trained - not", COCO, "pretrained", "scratch"),
    ("DINO from METR - not", COCO, "dino_pretrained", "dino_scratch"),
]


def base(name: str, datasets: list[str], steps: int) -> DictConfig:
    """A quickstart config trained on some of the datasets."""
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg.dataloader.train.datasets = [f"{d}_train" for d in datasets]
    cfg.dataloader.test_datasets = [f"{d}_val" for d in datasets]
    cfg.dataloader.test.batch_size = 10
    cfg.train.max_iter = steps
    cfg.train.pictures = 0
    return cfg


def start_from(cfg: DictConfig, checkpoint: Path, key_map: str = "") -> DictConfig:
    """Begin with the weights of the run that learned shapes_lvis."""
    cfg.train.init_checkpoint = str(checkpoint)
    cfg.train.init.key_map = key_map
    if not key_map:
        cfg.model.on_vocabulary_mismatch = "transfer"
        cfg.train.init.class_names = list(label_space_of([f"{LVIS}_train"], "name").names)
    return cfg


def without_cem(cfg: DictConfig) -> DictConfig:
    """Table 4: no category extraction, so no scores of categories."""
    cfg.model.cem = None
    cfg.dataloader.evaluators = {COCO + "_val": "coco", LVIS + "_val": "lvis"}
    return cfg


def arms(args: argparse.Namespace, seed: int) -> dict[str, Callable[[], DictConfig]]:
    """The config of every arm; made when it runs."""
    n, m = args.steps, args.tune_steps
    pretrained = args.work / f"lvis_{seed}" / "model_final.pth"
    return {
        "coco": lambda: base("metr", [COCO], n),
        "lvis": lambda: base("metr", [LVIS], n),
        "joint": lambda: base("metr", [COCO, LVIS], 2 * n),
        "no_cem": lambda: without_cem(base("metr", [COCO, LVIS], 2 * n)),
        "scratch": lambda: base("metr", [COCO], m),
        "pretrained": lambda: start_from(base("metr", [COCO], m), pretrained),
        "dino_scratch": lambda: base("detr/dino", [COCO], m),
        "dino_pretrained": lambda: start_from(base("detr/dino", [COCO], m), pretrained, "metr.transfer:to_dino"),
    }


def train(args: argparse.Namespace) -> None:
    """Run what is asked for and not there yet."""
    for seed in args.seeds:
        for name, make in arms(args, seed).items():
            if args.arms and name not in args.arms:
                continue
            cfg = make()
            cfg.train.seed = seed
            cfg.train.output_dir = str(args.work / f"{name}_{seed}")
            run(cfg, resume=True)


def collect(work: Path) -> dict[str, dict[str, dict[int, float]]]:
    """AP by dataset, arm and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {dataset: {} for dataset in METRICS}
    for path in sorted(work.glob("*_*/results.json")):
        arm, seed = path.parent.name.rsplit("_", 1)
        results = json.loads(path.read_text())
        for dataset, key in METRICS.items():
            name, task, metric = key.split("/")
            if name in results:
                found[dataset].setdefault(arm, {})[int(seed)] = results[name][task][metric]
    return found


def report(args: argparse.Namespace) -> str:
    """What each arm reached, and the paired differences that answer the questions."""
    found = collect(args.work)
    rows = [
        [dataset, arm, len(seeds), spread(list(seeds.values()))]
        for dataset, by_arm in found.items()
        for arm, seeds in by_arm.items()
    ]
    lines = [tabulate(rows, headers=["dataset", "arm", "seeds", "AP"], tablefmt="github")]
    answers = []
    for question, dataset, one, other in QUESTIONS:
        a, b = found[dataset].get(one, {}), found[dataset].get(other, {})
        shared = sorted(set(a) & set(b))
        if shared:
            differences = [a[s] - b[s] for s in shared]
            answers.append([question, dataset, spread(differences), ", ".join(f"{d:+.1f}" for d in differences)])
    lines.append(tabulate(answers, headers=["question", "dataset", "difference in AP", "by seed"], tablefmt="github"))
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--steps", type=int, default=300, help="N")
    parser.add_argument("--tune-steps", type=int, default=150, help="M")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, help="write the numbers as json and the tables as md there")
    args = parser.parse_args()
    unknown = set(args.arms or ()) - set(arms(args, 0))
    if unknown:
        parser.error(f"unknown arms {sorted(unknown)}; known: {', '.join(arms(args, 0))}")
    if not args.report:
        train(args)
    text = report(args)
    print(text)
    numbers = {"steps": args.steps, "tune_steps": args.tune_steps, "AP": collect(args.work)}
    batch = load_config(CONFIGS / "metr.py").dataloader.train.total_batch_size
    title = f"# METR on ShapeWorld\n\nN = {args.steps}, M = {args.tune_steps} steps of {batch} images.\n\n"
    write(args.output, numbers, title + text)


if __name__ == "__main__":
    main()
