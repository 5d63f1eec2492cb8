#!/usr/bin/env python
"""The oracle study of METR's queries: what is found at best if each image and category keeps only its N best boxes.

    python tools/oracle_recall.py coco_2017_val
    python tools/oracle_recall.py instances_val2017.json --keep 1 2 5 10 --queries 100 --top-k 20

Takes dataset cards, or annotation files in COCO's or LVIS' format; reads no image.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from tabulate import tabulate

from metr.oracle import Objects, category_rank, rank_in_group, study
from polydet.data import DatasetCard, DatasetError, load_card, prepare_cards, register_card
from polydet.data.card import find_card
from polydet.data.readers.json_file import load_json
from polydet.engine.command import command
from polydet.files import write_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Which data and which limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="card names, or json files of COCO or LVIS")
    parser.add_argument("--keep", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20], help="boxes an image and category")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--top-k", type=int, default=20, help="categories of an image")
    parser.add_argument("--output", type=Path, help="write the results there as json")
    return parser.parse_args(argv)


def read_objects(data: str) -> Objects:
    """The objects of a card or of a COCO or LVIS json file, crowds left out.

    Raises:
        DatasetError: neither a card nor a file, a broken file, or one without an object.
    """
    name = _card_of(data)
    table = load_card(name)
    image = table.image_of_annotation()
    counted = table.flags & 1 == 0
    area = table.boxes[:, 2].astype(np.float64) * table.boxes[:, 3]
    if not counted.any():
        raise DatasetError("has no object that counts (crowds do not)", file=data)
    return Objects(image[counted].astype(np.int64), table.labels[counted].astype(np.int64), area[counted])


def _card_of(data: str) -> str:
    """The name of a card, or of a new one for a file."""
    path = Path(data).absolute()
    if not path.is_file():
        if Path(data).suffix == ".json":
            raise DatasetError("does not exist", file=path, remedy="name a json file, or a card (without .json)")
        prepare_cards([find_card(data).name])
        return data
    images = load_json(path).get("images") or [{}]
    form = "lvis" if isinstance(images[0], dict) and "neg_category_ids" in images[0] else "coco"
    name = "oracle_" + re.sub(r"[^\w.+@-]", "_", path.stem)
    register_card(DatasetCard(name, json_file=str(path), image_root=str(path.parent), format=form), overwrite=True)
    return name


def report(data: str, objects: Objects, rows: dict[str, dict[str, float]]) -> str:
    """How the objects are spread, and a table of the bounds."""
    most = int(rank_in_group(objects).max()) + 1
    crowded = np.mean(rank_in_group(objects) >= 5)
    header = (
        f"{data}: {len(objects)} objects in {len(np.unique(objects.image))} images; at most {most} of a category and "
        f"{int(category_rank(objects).max()) + 1} categories in an image; {100 * crowded:.1f} % of the objects are "
        "beyond the fifth of their category"
    )
    columns = list(next(iter(rows.values())))
    table = [[name, *(f"{row[c]:.1f}" for c in columns)] for name, row in rows.items()]
    return f"{header}\n{tabulate(table, headers=['oracle', *columns])}\n"


def main(args: argparse.Namespace) -> int:
    """Print a table for each dataset."""
    results = {}
    for data in args.data:
        objects = read_objects(data)
        results[data] = study(objects, args.keep, args.queries, args.top_k)
        print(report(data, objects, results[data]))
    if args.output:
        write_text(args.output, json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    command(lambda: main(parse_args()), also=(ValueError,))
