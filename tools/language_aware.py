#!/usr/bin/env python
"""Figure 4 of METR: the same images under different words.

python tools/language_aware.py output/quickstart_metr --words circle --words circle star --words circle star ring
python tools/language_aware.py configs/metr_r50_12ep.py --weights model.pth --dataset coco_2017_val --words person
"""

import argparse
from pathlib import Path

from detectron2.config import instantiate

from metr import METR
from metr.pictures import language_panel, save
from polydet.data import get_card, load_card, prepare_cards
from polydet.engine import ConfigError
from polydet.engine.command import command
from polydet.engine.distributed import resolve_device
from polydet.engine.labels import cards_of
from polydet.model_zoo import get, get_model_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """A run, the words and the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, a model file, or a config file")
    parser.add_argument("--weights", help="checkpoint; default: model_final.pth of the run's folder")
    parser.add_argument("--words", nargs="+", action="append", required=True, help="once for each column")
    parser.add_argument("--dataset", help="card; default: the config's first test dataset")
    parser.add_argument("--images", type=int, default=3, help="how many, those with most of the words first")
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--output", type=Path, help="default: language_aware.png in the run's folder")
    return parser.parse_args(argv)


def choose_images(dataset: str, words: list[list[str]], count: int) -> list[dict]:
    """Dataset dicts with the most different words among their objects."""
    classes = get_card(dataset).classes or ()
    wanted = {i for i, name in enumerate(classes) if name in {w for column in words for w in column}}
    table = load_card(dataset)
    hits = [len(wanted & set(table.labels[a:b].tolist())) for a, b in zip(table.offsets, table.offsets[1:])]
    return [table.record(i) for i in sorted(range(len(table)), key=lambda i: -hits[i])[:count]]


def main(args: argparse.Namespace) -> int:
    """Draw and save."""
    cfg = get_model_config(args.run, (), args.weights)
    if not args.dataset and not cfg.dataloader.test_datasets:
        raise ConfigError(f"{args.run} has no test datasets: name a card with --dataset")
    dataset = args.dataset or cfg.dataloader.test_datasets[0]
    prepare_cards([*cards_of(cfg), dataset])
    model = get(args.run, args.weights, str(resolve_device(cfg.train.device)))
    if not isinstance(model, METR):
        raise ConfigError(f"{args.run} builds a {type(model).__name__}, not a METR")
    mapper = instantiate(cfg.dataloader.test.mapper)
    inputs = [mapper(record) for record in choose_images(dataset, args.words, args.images)]
    output = args.output or (args.run if args.run.is_dir() else Path()) / "language_aware.png"
    save(language_panel(model, inputs, args.words, args.threshold), output)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    command(lambda: main(parse_args()), also=(ValueError,))
