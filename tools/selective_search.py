"""Selective-search proposals of a dataset, as COCO json and as compact columns; resumes after a kill.

python tools/selective_search.py --json instances_train2017.json --root train2017 --output proposals/coco
python tools/selective_search.py --root any/folder/of/images --output proposals/mine --mode fast
"""

import argparse
import logging
import os
from pathlib import Path

from aligndet.proposal_run import images_of_folder, images_of_json, run
from aligndet.proposals import MODES, ProposalSettings


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    defaults = ProposalSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the images")
    parser.add_argument("--json", type=Path, help="COCO or LVIS json that lists them (else: every image below root)")
    parser.add_argument("--output", type=Path, required=True, help="path without suffix")
    parser.add_argument("--mode", choices=MODES, default=defaults.mode)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--shard-size", type=int, default=32, help="images that a kill can cost a process")
    parser.add_argument("--min-side", type=float, default=defaults.min_side, help="pixels")
    parser.add_argument("--max-aspect", type=float, default=defaults.max_aspect)
    parser.add_argument("--max-relative-size", type=float, default=defaults.max_relative_size)
    parser.add_argument("--nms-iou", type=float, default=defaults.nms_iou)
    parser.add_argument("--max-side", type=int, default=defaults.max_side, help="search a smaller copy; 0: full size")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--no-json", action="store_true", help="columns only")
    return parser.parse_args()


def main() -> None:
    """Search every image that was asked for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args()
    settings = ProposalSettings(
        mode=args.mode,
        min_side=args.min_side,
        max_aspect=args.max_aspect,
        max_relative_size=args.max_relative_size,
        nms_iou=args.nms_iou,
        max_side=args.max_side,
        seed=args.seed,
    )
    records = images_of_json(args.json) if args.json else images_of_folder(args.root)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    columns = run(records, args.root, args.output, settings, args.workers, args.shard_size, not args.no_json)
    print({key: value for key, value in columns.info.items() if key != "settings"})


if __name__ == "__main__":
    main()
