"""What the studies share: spreads, and results as json and markdown."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation; a single value alone."""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def write(path: Path | None, numbers: Any, text: str) -> None:
    """`path` with the endings ``.json`` and ``.md``; nothing without a path."""
    if path is not None:
        path.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
        path.with_suffix(".md").write_text(text + "\n")
