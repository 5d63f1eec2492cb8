"""What the studies share: spreads, and results as json and markdown."""

import contextlib
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from polydet.data import get_card


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation; a single value alone."""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def boxes_alone(run: Path, dataset: str) -> dict[str, float]:
    """``AP`` and ``AP50`` of a finished run's boxes, whatever their class (0 to 100), on a card with one COCO json."""
    found = run / "inference" / dataset / "coco_instances_results.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(get_card(dataset).json_files[0]))
        evaluation = COCOeval(truth, truth.loadRes(str(found)), "bbox")
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": 100 * float(evaluation.stats[0]), "AP50": 100 * float(evaluation.stats[1])}


def write(path: Path | None, numbers: Any, text: str) -> None:
    """`path` with the endings ``.json`` and ``.md``; nothing without a path."""
    if path is not None:
        path.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
        path.with_suffix(".md").write_text(text + "\n")
