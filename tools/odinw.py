#!/usr/bin/env python
"""Fine-tune on the thirteen sets of ODinW, one run each, and write one report.

    python tools/odinw.py --config-file configs/detclipv2/supp_table7_detclipv2_swin_t_odinw13_ft.py --num-gpus 8
    python tools/odinw.py --config-file ... --direct        test train.init_checkpoint without training
    python tools/odinw.py --config-file ... --sets Packages Raccoon train.output_dir=out

The config names its set in the key odinw.set (PascalVOC, ...) and uses the cards odinw_<set>_{train,val,test};
any paper's config may. Each set is evaluated on val once an epoch; the best checkpoint is scored on test. A set that
is finished is left alone, one that was stopped goes on. Warmup is at most a tenth of the longest possible run: the
smallest set has one step an epoch. Overrides are key=value.

Under train.output_dir: a folder a set, report.txt, report.json and report.png over all of them.
"""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from polydet.data import Union, prepare_cards
from polydet.data.builtin.odinw import ODINW13
from polydet.engine import ConfigError, load_config, run, run_distributed
from polydet.engine.command import command
from polydet.engine.weights import own_weights, use_weights
from polydet.evaluation.report import write_report

logger = logging.getLogger("polydet.odinw")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--sets", nargs="+", default=list(ODINW13), metavar="SET")
    parser.add_argument("--direct", action="store_true", help="no training")
    parser.add_argument("--num-gpus", "--processes", dest="processes", type=int, default=1)
    parser.add_argument("--dist-url", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    sets = [item for item in args.sets if "=" not in item]  # --sets is greedy
    args.overrides = [*args.overrides, *(item for item in args.sets if "=" in item)]
    args.sets = sets or list(ODINW13)
    return args


def config_of(args: argparse.Namespace, name: str) -> Any:
    """The config of one set: an evaluation an epoch, warmup within the run, its own folder.

    Raises:
        ConfigError: a config without the key `odinw.set`.
    """
    cfg = load_config(args.config_file, args.overrides)
    if "odinw" not in cfg or "set" not in cfg.odinw:
        raise ConfigError(f"{args.config_file} has no key odinw.set; see {Path(__file__).name} --help")
    cfg.odinw.set = name
    folder = Path(cfg.train.output_dir)
    cfg.train.output_dir = str(folder if folder.name == name else folder / name)
    if not args.direct:
        images = len(Union(list(cfg.dataloader.train.datasets)))
        steps = images / cfg.dataloader.train.total_batch_size
        total = math.ceil(cfg.train.max_epochs * steps)
        cfg.train.update(eval_period=0, eval_period_epochs=1.0)
        cfg.train.checkpoint_period = max(1, round(5 * steps))
        cfg.lr_multiplier.warmup_iters = min(cfg.lr_multiplier.warmup_iters, math.ceil(total / 10))
        logger.info("%s: %d images, %.2f steps an epoch, at most %d", name, images, steps, total)
    return cfg


def run_set(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train on one set and score its best checkpoint on test; `{task: {metric: value}}` on the main process."""
    cfg = config_of(args, name)
    folder = Path(cfg.train.output_dir)
    done = folder / "test" / "results.json"
    test = f"odinw_{name}_test"
    if not done.is_file():
        if not args.direct:
            run(cfg, resume=True)
            best = (folder / "model_best.pth").is_file()
            use_weights(cfg, own_weights(cfg, explicit=False, best=best))
        cfg.dataloader.test_datasets = [test]
        cfg.train.output_dir = str(folder / "test")
        run(cfg, eval_only=True)
    comm.synchronize()
    if not comm.is_main_process():
        return {}
    found = json.loads(done.read_text())[test]
    return {task: {k: math.nan if v is None else v for k, v in metrics.items()} for task, metrics in found.items()}


def main(args: argparse.Namespace) -> None:
    """All sets, in every process."""
    splits = ("test",) if args.direct else ("train", "val", "test")
    if comm.is_main_process():
        prepare_cards([f"odinw_{name}_{split}" for name in args.sets for split in splits])
    comm.synchronize()
    results = {name: run_set(args, name) for name in args.sets}
    if comm.is_main_process():
        direct = argparse.Namespace(**{**vars(args), "direct": True})
        root = Path(config_of(direct, args.sets[0]).train.output_dir).parent
        summary = write_report({f"odinw_{name}_test": found for name, found in results.items()}, root)
        print((root / "report.txt").read_text())
        print(f"mean AP over {len(results)} sets: {summary['mAP_D']:.2f}")


def start(args: argparse.Namespace) -> None:
    """Look at the config, which costs a second, then start the processes."""
    config_of(argparse.Namespace(**{**vars(args), "direct": True}), args.sets[0])
    run_distributed(main, (args,), args.processes, dist_url=args.dist_url)


if __name__ == "__main__":
    arguments = parse_args()
    command(lambda: start(arguments))
