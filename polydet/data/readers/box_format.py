"""Whether boxes are in the format that their file should have, judged by statistics of all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from polydet.data.errors import DatasetError

__all__ = ["BoxForm", "check_box_format"]

logger = logging.getLogger(__name__)

BoxForm = Literal["xywh", "xyxy", "cxcywh"]

_WORDS = {
    "xywh": "[x, y, width, height]",
    "xyxy": "[x_min, y_min, x_max, y_max]",
    "cxcywh": "[x_centre, y_centre, width, height]",
    "yx": "the same numbers with y before x",
}
_AGAINST = 3  # boxes at least that must speak against the format
_SHARE = 0.05  # of all boxes, at least
_BETTER = 10  # times fewer boxes must speak against another format
_LOOKED_AT = 1_000_000  # boxes, evenly from all of a larger file: copies of them are made
_SLACK = 2.0, 0.02  # pixels, or part of the side, that careful annotators overshoot


def check_box_format(
    boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, path: Path, form: BoxForm = "xywh"
) -> None:
    """Compare how well the boxes fit their images as they were read and in other common formats.

    A box speaks against a format if it then has no area or reaches out of its image by more than 2 pixels and 2 % of
    the side.  Also numbers that are all fractions of the image are found.  If many boxes speak against the file's
    format and no other fits, that is logged.

    Args:
        boxes: float64 [m, 4], XYWH pixels, as read.
        widths, heights: size of each box's image [m].
        form: the format that the file should have, from which ``boxes`` were made.

    Raises:
        DatasetError: another format fits and the file's does not, naming the likely one.
    """
    step = max(1, len(boxes) // _LOOKED_AT)
    boxes, widths, heights = boxes[::step], widths[::step], heights[::step]
    finite = np.isfinite(boxes).all(axis=1) & (widths > 8) & (heights > 8)
    boxes, widths, heights = boxes[finite], widths[finite], heights[finite]
    if len(boxes) < _AGAINST:
        return
    expected = _WORDS[form]
    if (np.abs(boxes) <= 1.5).all():
        raise DatasetError(
            f"all {len(boxes)} boxes lie within the first pixel of their images: likely fractions of the image",
            file=path,
            remedy=f"boxes must be {expected} in pixels of the original image",
        )
    against = _against(boxes, widths, heights)
    count = int(against.sum())
    if count < max(_AGAINST, _SHARE * len(boxes)):
        return
    raw = _RAW[form](boxes)
    others = {name: read(raw) for name, read in _READ.items() if name != form}
    others["yx"] = boxes[:, [1, 0, 3, 2]]
    counts = {name: int(_against(other, widths, heights).sum()) for name, other in others.items()}
    likely = min(counts, key=lambda name: counts[name])
    summary = f"{count} of {len(boxes)} boxes have no area or reach out of their image"
    if counts[likely] * _BETTER <= count:
        raise DatasetError(
            f"{summary}; read as {_WORDS[likely]} only {counts[likely]} do: likely the boxes' format",
            file=path,
            remedy=f"boxes must be {expected} in pixels of the original image: convert them",
        )
    logger.warning("%s: %s; boxes must be %s in pixels of the original image", path, summary, expected)


def _against(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Which boxes (XYWH) have no area or reach out of their image, bool [m]."""
    x, y, w, h = boxes.T
    slack_x, slack_y = (np.maximum(_SLACK[0], _SLACK[1] * side) for side in (widths, heights))
    outside = (x < -slack_x) | (y < -slack_y) | (x + w > widths + slack_x) | (y + h > heights + slack_y)
    return outside | (w <= 0) | (h <= 0)


def _corners(raw: np.ndarray) -> np.ndarray:
    return np.concatenate([raw[:, :2], raw[:, 2:] - raw[:, :2]], axis=1)


def _centres(raw: np.ndarray) -> np.ndarray:
    return np.concatenate([raw[:, :2] - raw[:, 2:] / 2, raw[:, 2:]], axis=1)


_Reading = Callable[[np.ndarray], np.ndarray]
# from the file's four numbers to XYWH, and back
_READ: dict[str, _Reading] = {"xywh": lambda raw: raw, "xyxy": _corners, "cxcywh": _centres}
_RAW: dict[str, _Reading] = {
    "xywh": lambda boxes: boxes,
    "xyxy": lambda boxes: np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    "cxcywh": lambda boxes: np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1),
}
