#!/usr/bin/env python
"""Multi-label mAP of a model that says which classes are in an image (METR's category extraction, Query2Label).

    python tools/evaluate_classification.py output/quickstart_metr
    python tools/evaluate_classification.py configs/metr/table2_metr_r50_12ep.py --weights model.pth --size 448 448

Takes the folder of a finished run, or a config file and weights.  Without --size the config's test transforms are used.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from omegaconf import DictConfig
from torch import nn

from polydet.data import label_space_of, prepare_cards
from polydet.data.augmentations import fixed_resize
from polydet.data.card import refuse_formats
from polydet.engine import ConfigError
from polydet.engine.command import command
from polydet.engine.distributed import resolve_device
from polydet.engine.evaluate import ClassMismatch, classes_of
from polydet.engine.labels import WITHOUT_CLASSES, cards_of, closed_space
from polydet.evaluation import MultiLabelEvaluator, SameSize
from polydet.files import write_text
from polydet.model_zoo import get, get_model_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """A run or a config, and what differs from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, a model file, or a config file")
    parser.add_argument("--weights", help="checkpoint; default: model_final.pth of the run's folder")
    parser.add_argument("--datasets", nargs="+", help="cards; default: the config's test datasets")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="resize images to this size")
    parser.add_argument("--output", type=Path, help="write the results there as json")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


class ClassScores(MultiLabelEvaluator):
    """Stops at the first image of a model that says nothing about images as a whole."""

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take a batch."""
        if any("class_scores" not in output for output in outputs):
            raise ConfigError(
                "the model gives boxes only, no scores of an image's classes (class_scores); METR with its category "
                "extraction has them, and Query2Label"
            )
        super().process(list(inputs), list(outputs))


def evaluate(cfg: DictConfig, model: nn.Module, dataset: str) -> dict[str, float]:
    """``mAP`` and the AP of each class, 0 to 100."""
    loader_cfg = cfg.dataloader.test.copy()
    loader_cfg.dataset = dataset
    space = closed_space(cfg, model)
    if space is not None and space.names != label_space_of([dataset]).names:
        raise ClassMismatch(f"{dataset} has other classes than the model was trained on")
    with classes_of(model, dataset, None):
        results = inference_on_dataset(SameSize(model), instantiate(loader_cfg), ClassScores(dataset))
    return results["classification"]


def main(args: argparse.Namespace) -> int:
    """Evaluate on each dataset and print a line each."""
    cfg = get_model_config(args.run, args.overrides, args.weights)
    if args.size:
        height, width = args.size
        cfg.dataloader.test.mapper.augmentations = L(fixed_resize)(height=height, width=width)
    datasets = args.datasets or list(cfg.dataloader.test_datasets)
    if not datasets:
        raise ConfigError("the config has no test datasets: name some with --datasets")
    refuse_formats(datasets, WITHOUT_CLASSES, "multi-label mAP needs cards with classes of boxes")
    prepare_cards([*cards_of(cfg), *datasets])
    model, results = get(args.run, args.weights, str(resolve_device(cfg.train.device)), overrides=args.overrides), {}
    with torch.no_grad():
        for dataset in datasets:
            results[dataset] = evaluate(cfg, model, dataset)
            print(f"{dataset}: multi-label mAP {results[dataset]['mAP']:.2f}")
    if args.output:
        write_text(args.output, json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    command(lambda: main(parse_args()))
