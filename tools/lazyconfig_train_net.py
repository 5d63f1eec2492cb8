#!/usr/bin/env python
"""Train and evaluate a LazyConfig file.

    python tools/lazyconfig_train_net.py --config-file configs/quickstart/scaledet.py
    python tools/lazyconfig_train_net.py --config-file configs/scaledet_swinb.py --num-gpus 8 train.output_dir=out
    torchrun --nproc-per-node 8 tools/lazyconfig_train_net.py --config-file ...
    ... --resume        go on where the run in train.output_dir stopped
    ... --eval-only     evaluate train.init_checkpoint=FILE if it is named here, else the weights in train.output_dir

SIGTERM and SIGUSR1 have the run saved after the step; it leaves with exit code 75, to be started again with --resume.
Overrides are key=value; a key that does not exist is an error that names the nearest one.
"""

import argparse
import sys

from torch.multiprocessing import ProcessExitedException

from polydet.engine import load_config, run, run_distributed
from polydet.engine.command import KNOWN


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Detectron2's arguments, plus --processes for CPU jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a .py config, or a run's config.yaml")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument(
        "--num-gpus", "--processes", dest="processes", type=int, default=1, help="processes on this machine"
    )
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


def main(args: argparse.Namespace) -> None:
    """One process of the job."""
    cfg = load_config(args.config_file, args.overrides)
    run(cfg, resume=args.resume, eval_only=args.eval_only)


def process(args: argparse.Namespace) -> None:
    """:func:`main`, whose errors are a sentence in one of several processes as well."""
    try:
        main(args)
    except KNOWN as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    arguments = parse_args()
    try:
        load_config(arguments.config_file, arguments.overrides)  # a typo costs a second, not a job
        run_distributed(
            process,
            (arguments,),
            arguments.processes,
            arguments.num_machines,
            arguments.machine_rank,
            arguments.dist_url,
        )
    except KNOWN as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except ProcessExitedException as error:  # one of several has said why
        sys.exit(error.exit_code)
