#!/usr/bin/env python
"""Which part of a config does what, from which paper and equation, with how many parameters, trained or frozen.

python tools/explain.py metr_r50_12ep                                   # a table
python tools/explain.py combined/co_metr --picture co_metr.png [--depth 4] [key=value ...]
python tools/explain.py quickstart/aligndet --stage pretrain            # one of a config's stages

Nothing is downloaded and no dataset is read but its class names.
"""

import argparse
import logging
import textwrap
import warnings

import tabulate

from polydet import model_zoo
from polydet.engine.command import command
from polydet.engine.explain import build_without_weights, draw, parts_of, table
from polydet.engine.stages import one_model

HEADERS = ["part", "class", "what it does", "source", "M", ""]


def main() -> None:
    """Parse the command line, build without weights, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--stage", help="its name, where the config has stages")
    parser.add_argument("--depth", type=int, default=3, help="how deep to look below the model")
    parser.add_argument("--picture", help="also draw it: a png, svg or pdf")
    args = parser.parse_intermixed_args()
    cfg = model_zoo.get_config(args.config, args.overrides)
    cfg = one_model(cfg, args.stage)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    parts = parts_of(build_without_weights(cfg), args.depth)
    rows = [[cell if i in (0, 4) else textwrap.fill(cell, 44) for i, cell in enumerate(row)] for row in table(parts)]
    tabulate.PRESERVE_WHITESPACE = True  # depth is shown by it
    print(tabulate.tabulate(rows, headers=HEADERS, tablefmt="plain", disable_numparse=True))
    if args.picture:
        draw(parts, args.config, args.picture)
        print(f"\ndrawn: {args.picture}")


if __name__ == "__main__":
    command(main)
