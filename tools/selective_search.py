"""Selective-search proposals of a dataset, as COCO json and as compact columns; resumes after a kill.

python tools/selective_search.py --dataset coco_2017_train --output proposals/coco_2017_train --workers 16
python tools/selective_search.py --root any/folder/of/images --output proposals/mine --mode fast
python tools/selective_search.py --proposals filtered_proposals.json --output proposals/coco_2017_train
"""

import argparse
import logging
import os
import random
from dataclasses import fields
from pathlib import Path

from aligndet.proposal_columns import ProposalColumns
from aligndet.proposal_data import make_proposals
from aligndet.proposal_run import images_of_folder, images_of_json, run
from aligndet.proposals import MODES, ProposalSettings
from polydet.data import prepare_cards
from polydet.data.card import refuse_formats
from polydet.engine.command import command


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    defaults = ProposalSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="card of the dataset, e.g. coco_2017_train; its annotations are not used")
    parser.add_argument("--root", type=Path, help="or: folder of the images")
    parser.add_argument("--proposals", type=Path, help="or: COCO json of boxes that exist already; nothing is searched")
    parser.add_argument("--json", type=Path, help="with --root: COCO or LVIS json that lists them (else every image)")
    parser.add_argument("--sample", type=int, help="with --root: only so many images, drawn with --seed")
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
    args = parser.parse_args()
    if [args.dataset, args.root, args.proposals].count(None) != 2:
        parser.error("give one of --dataset, --root and --proposals")
    if not args.root and (args.json or args.sample):
        parser.error("--json and --sample go with --root; a card of --dataset is searched as a whole")
    return args


def main() -> None:
    """Search every image that was asked for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args()
    settings = {field.name: getattr(args, field.name) for field in fields(ProposalSettings)}
    write_json = not args.no_json
    if args.proposals:
        columns = ProposalColumns.read_coco(args.proposals)
        columns.save(args.output.with_name(args.output.name + ".columns"))
    elif args.dataset:
        refuse_formats([args.dataset], ["webdataset", "caption_csv"], "--dataset takes cards whose images are files")
        prepare_cards([args.dataset])
        columns = make_proposals(
            args.dataset, args.output, args.workers, shard_size=args.shard_size, write_json=write_json, **settings
        )
    else:
        records = images_of_json(args.json) if args.json else images_of_folder(args.root)
        if args.sample:
            if args.sample > len(records):
                raise SystemExit(f"--sample {args.sample}: there are only {len(records)} images in {args.root}")
            records = random.Random(args.seed).sample(records, args.sample)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        config = ProposalSettings(**settings)
        columns = run(records, args.root, args.output, config, args.workers, args.shard_size, write_json)
    print({key: value for key, value in columns.info.items() if key != "settings"})


if __name__ == "__main__":
    command(main, also=(ValueError,))
