"""Results of several datasets in one report: means over datasets and classes, unseen classes, table, json, plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import orjson
from tabulate import tabulate

from polydet.files import save_figure, write_bytes, write_text
from polydet.text import clean_name

__all__ = ["class_results", "summarise", "unseen_classes", "write_report"]

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # dataset -> task -> metric -> 0..100


def class_results(metrics: Mapping[str, float]) -> dict[str, float]:
    """AP of every class, from the entries `AP-<class>` of a task's metrics (`AP50-<class>` of OpenImages)."""
    prefix = "AP-" if any(key.startswith("AP-") for key in metrics) else "AP50-"
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


def _value(metrics: Mapping[str, float], metric: str) -> float | None:
    """A dataset's metric; for AP on OpenImages, which has none, its official AP50 (ScaleDet's mean counts it so)."""
    return metrics.get(metric, metrics.get("AP50_expand") if metric == "AP" else None)


def unseen_classes(classes: Iterable[str], trained: Iterable[str]) -> list[str]:
    """Classes whose name is no training label (ScaleDet's "unseen"; case, blanks and underscores aside)."""
    known = {clean_name(name).lower() for name in trained}
    return [name for name in classes if clean_name(name).lower() not in known]


def summarise(
    results: Results, task: str = "bbox", metric: str = "AP", trained: Sequence[str] = ()
) -> dict[str, float]:
    """Means over datasets.

    Args:
        metric: per dataset, for `mAP_D`; of OpenImages `AP50_expand` stands for AP. A dataset without it is left out.
        trained: names of all training labels; given, the unseen classes get their own mean.

    Returns:
        `mAP_D`: mean of `metric` over the datasets; `mAP_C`: mean of AP over all classes of all datasets (classes
        without ground truth left out); `mAP_C_unseen` and `unseen`: mean over and number of the unseen classes.
    """
    values = {name: _value(tasks.get(task, {}), metric) for name, tasks in results.items()}
    classes: list[tuple[str, float]] = []
    for name, tasks in results.items():
        found = class_results(tasks.get(task, {}))
        if not found and (value := values[name]) is not None:  # Detectron2 names no single class
            found = dict.fromkeys(_only_class(name), value)
        classes += found.items()
    summary = {
        "mAP_D": _mean([v for v in values.values() if v is not None]),
        "mAP_C": _mean([value for _, value in classes]),
    }
    if trained:
        unseen = set(unseen_classes([name for name, _ in classes], trained))
        theirs = [value for name, value in classes if name in unseen]
        summary |= {"mAP_C_unseen": _mean(theirs), "unseen": float(len(theirs))}
    return summary


def _only_class(dataset: str) -> tuple[str, ...]:
    """The class of a dataset that has one; nothing of the others."""
    from polydet.data import get_card

    classes = get_card(dataset).classes or ()
    return classes if len(classes) == 1 else ()


def _mean(values: Sequence[float]) -> float:
    valid = [value for value in values if np.isfinite(value)]
    return float(np.mean(valid)) if valid else float("nan")


def write_report(
    results: Results, output_dir: str | Path, task: str = "bbox", trained: Sequence[str] = ()
) -> dict[str, float]:
    """Write `report.txt` (a table), `report.json` (NaN as null) and `report.png` (bars) and return the summary."""
    folder = Path(output_dir)
    main = ("AP", "AP50", "AP75", "AP50_expand", "APr", "APc", "APf", "mAP")
    used = [m for m in main if any(m in tasks.get(task, {}) for tasks in results.values())]
    rows = [[name, *(tasks.get(task, {}).get(m, "") for m in used)] for name, tasks in results.items()]
    has_ap = any(_value(tasks.get(task, {}), "AP") is not None for tasks in results.values())
    summary = summarise(results, task, "AP" if has_ap or not used else used[0], trained)
    table = tabulate(rows, ["dataset", *used], floatfmt=".2f")
    lines = "\n".join(f"{key}: {value:.2f}" for key, value in summary.items())
    write_text(folder / "report.txt", f"{table}\n\n{lines}\n")
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    write_bytes(folder / "report.json", orjson.dumps({"results": results, "summary": summary}, option=options))
    _plot(results, task, used[:2], folder / "report.png")
    return summary


def _plot(results: Results, task: str, metrics: Sequence[str], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(results)
    figure = Figure(figsize=(1.5 + 0.6 * len(names), 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(len(metrics), 1)
    for i, metric in enumerate(metrics):
        values = [results[name].get(task, {}).get(metric, np.nan) for name in names]
        axes.bar(np.arange(len(names)) + i * width, values, width, label=metric)
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=45, ha="right")
    axes.set_ylim(0, 100)
    axes.set_ylabel("0 to 100")
    if metrics:
        axes.legend()
    save_figure(path, figure, dpi=120)
