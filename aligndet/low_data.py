"""Low-data protocol: folds of 1, 5, 10 and 20 % of a dataset's images (section 4.1, table 2)."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from polydet.data import AnnotationTable, DatasetCard, DatasetError, build_train_loader, register_card
from polydet.data.card import find_card
from polydet.data.readers import READERS
from polydet.data.readers.json_file import load_json

FORMAT = "low_data_fold"


def fold_rows(num_images: int, percent: float, fold: int) -> np.ndarray:
    """Which images of the annotation file's list make a fold: the published draw.

    ``numpy.random.seed(fold)``, then a choice without replacement of ``int(percent / 100 * num_images)`` positions.

    Args:
        num_images: length of the list ``images``, in the order of the file.
        percent: above 0, at most 100.
        fold: from 1.

    Returns:
        int64 ``[k]``, in the order drawn.

    Raises:
        ValueError: a fold without images.
    """
    count = int(percent / 100.0 * num_images)
    if not 0 < percent <= 100 or count == 0:
        raise ValueError(f"{percent} % of {num_images} images is no fold")
    return np.random.RandomState(fold).choice(num_images, size=count, replace=False)


def read_fold(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """Reader of the format ``low_data_fold``: the base card's file, and of it the images of one fold."""
    base = find_card(str(card.options["fold_of"]))
    table, full = READERS[base.format](replace(card, format=base.format), path, image_root)
    listed = [image["id"] for image in load_json(path)["images"]]  # tables are sorted by id, the draw is not
    chosen = fold_rows(len(listed), float(card.options["percent"]), int(card.options["fold"]))
    keep = np.isin(np.asarray(table.ids), np.asarray(listed)[chosen])
    return table.select(np.flatnonzero(keep)), replace(full, format=FORMAT)


READERS[FORMAT] = read_fold


def fold_card(dataset: str, percent: float, fold: int) -> DatasetCard:
    """The card of a fold, ``{dataset}.{fold}@{percent}``, registered; 100 % is the dataset itself.

    Raises:
        DatasetError: a dataset that is not one json file with a list of images.
        ValueError: a share that is not above 0 and at most 100.
    """
    base = find_card(dataset)
    if percent == 100:
        return base
    if base.format not in ("coco", "lvis") or len(base.json_files) != 1:
        raise DatasetError(f"card {dataset!r} cannot be split into folds", remedy="use a card with one COCO json file")
    if not 0 < percent < 100:
        raise ValueError(f"{percent} % of {dataset} is no fold: data.percent lies above 0 and at or below 100")
    base.prepare()
    card = replace(
        base,
        name=f"{dataset}.{fold}@{percent:g}",
        format=FORMAT,
        generator=None,
        options={**base.options, "fold_of": dataset, "percent": percent, "fold": fold},
        about=f"{percent:g} % of {dataset}, fold {fold}",
    )
    return register_card(card, overwrite=True)


def build_low_data_loader(datasets: Sequence[str], percent: float = 100, fold: int = 1, **kwargs: Any) -> Any:
    """:func:`polydet.data.build_train_loader` on one fold of each dataset.

    Args:
        datasets: card names.
        percent: share of the images; 100 takes all.
        fold: 1 to 5 in the paper.
        kwargs: of :func:`polydet.data.build_train_loader`.
    """
    return build_train_loader(datasets=[fold_card(name, percent, fold).name for name in datasets], **kwargs)


def fold_report(results: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Sequence[str] = ("AP", "AP50")) -> str:
    """Mean and spread over folds as a table.

    Args:
        results: per row of the report, the ``results.json`` of each fold:
            ``{dataset: {task: {metric: 0 to 100, or None}}}``.
        metrics: columns.
    """
    rows = []
    for name, folds in results.items():
        keys = dict.fromkeys((dataset, task) for one in folds for dataset in one for task in one[dataset])
        for dataset, task in keys:
            row: list[Any] = [name, dataset, task, len(folds)]
            for metric in metrics:
                found = [one.get(dataset, {}).get(task, {}).get(metric) for one in folds]
                values = [float(v) for v in found if v is not None]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                row.append(f"{statistics.fmean(values):.2f} +- {spread:.2f}" if values else "")
            rows.append(row)
    return tabulate(rows, headers=["run", "dataset", "task", "folds", *metrics])


def main() -> None:
    """``python -m aligndet.low_data fcos=out/fold1,out/fold2 ...``: report of finished runs."""
    parser = argparse.ArgumentParser(description="Mean and spread over the folds of low-data runs.")
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER,FOLDER,...: the output folders of one row")
    parser.add_argument("--metrics", nargs="+", default=["AP", "AP50", "AP75"])
    args = parser.parse_args()
    results = {}
    for run in args.runs:
        name, _, folders = run.partition("=")
        results[name] = [json.loads((Path(folder) / "results.json").read_text()) for folder in folders.split(",")]
    print(fold_report(results, args.metrics))


if __name__ == "__main__":
    main()
