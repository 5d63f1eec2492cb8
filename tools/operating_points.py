#!/usr/bin/env python
"""Choose on validation data from which score on a detection of each class counts, and keep that in the model's file.

python tools/operating_points.py output/mine --dataset my_val
python tools/operating_points.py frogs.safetensors --dataset frogs_val --precision 0.95 --output strict.safetensors

``model_zoo.get(FILE, operating=True)`` and ``get_cfg(FILE, operating=True)`` obey them.
"""

import argparse
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate

from polydet.data import prepare_cards
from polydet.engine import ConfigError
from polydet.engine.command import command
from polydet.engine.distributed import resolve_device
from polydet.engine.evaluate import classes_of
from polydet.engine.labels import cards_of, closed_space
from polydet.engine.portable import NAME
from polydet.evaluation import SameSize
from polydet.evaluation.operating import OperatingPointEvaluator
from polydet.model_zoo import get, get_model_config, save


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """A model and validation data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or a model file")
    parser.add_argument("--dataset", required=True, help="card of validation data")
    parser.add_argument("--weights", help="checkpoint; default: the final ones of the run")
    parser.add_argument("--iou", type=float, default=0.5, help="from which on a box has found an object")
    parser.add_argument("--precision", type=float, default=0.0, help="least precision; default: the best F1")
    parser.add_argument("--output", type=Path, help="model file to write; default: the run's own")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Evaluate, choose, write, print a line a class."""
    cfg = get_model_config(args.run, (), args.weights)
    prepare_cards([*cards_of(cfg), args.dataset])
    model = get(args.run, args.weights, str(resolve_device(cfg.train.device)))
    loader_cfg = cfg.dataloader.test.copy()
    loader_cfg.dataset = args.dataset
    evaluator = OperatingPointEvaluator(args.dataset, args.iou, args.precision)
    space = closed_space(cfg, model)
    with torch.no_grad(), classes_of(model, args.dataset, space) as view:
        inference_on_dataset(SameSize(view), instantiate(loader_cfg), evaluator)
    points = evaluator.points
    if not points:
        raise ConfigError(f"no class of {args.dataset} has an operating point: the model finds none of its objects")
    rows = [[name, f"{p.score:.3f}", f"{p.precision:.2f}", f"{p.recall:.2f}", p.objects] for name, p in points.items()]
    print(tabulate(rows, headers=["class", "score", "precision", "recall", "objects"]))
    output = args.output or (args.run / NAME if args.run.is_dir() else args.run)
    chosen = {"dataset": args.dataset, "iou": args.iou, "precision": args.precision}
    save(model, output, {name: p.score for name, p in points.items()}, provenance={"operating": chosen})
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    command(lambda: main(parse_args()))
