"""Unsupervised box proposals for one image: selective search and the filters of the published proposal file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np

Mode = Literal["fast", "quality", "published"]
MODES: tuple[Mode, ...] = ("fast", "quality", "published")


@dataclass(frozen=True)
class ProposalSettings:
    """What decides the boxes of an image; stored beside every proposal file.

    mode: OpenCV's ``fast`` or ``quality``, or ``published``: one Felzenszwalb segmentation (scale 300,
        sigma 0.9, least region 100 pixels) merged greedily by colour, texture, size and fill.
    min_side: least width and height in pixels.
    max_aspect: width / height lies in ``[1 / max_aspect, max_aspect]``.
    max_relative_size: bound on ``sqrt(w h) / sqrt(W H)``.
    nms_iou: of two boxes that overlap more, the later one goes; duplicates go at any value below 1.
    max_side: the search runs on an image whose long side is at most this many pixels (0: as it is).
        Boxes always come back in the pixels of the file.
    seed: order of the boxes within an image.
    """

    mode: Mode = "published"
    min_side: float = 32.0
    max_aspect: float = 3.0
    max_relative_size: float = 0.8
    nms_iou: float = 0.5
    max_side: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"selective search mode {self.mode!r} is not one of {', '.join(MODES)}")
        if self.max_aspect < 1 or not 0 < self.nms_iou <= 1 or self.max_relative_size <= 0:
            raise ValueError(f"impossible proposal filter: {self}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for the sidecar file."""
        return asdict(self)


def selective_search(image: np.ndarray, mode: Mode) -> np.ndarray:
    """Every region of selective search (Uijlings et al. 2013), unfiltered.

    Args:
        image: uint8 ``[H, W, 3]``, BGR.

    Returns:
        float32 ``[n, 4]`` xyxy pixels without duplicates, in lexicographic order. OpenCV's own order comes from
        the C library's ``rand`` and differs from call to call; the *set* of boxes does not.
    """
    segmentation = cv2.ximgproc.segmentation  # type: ignore[attr-defined]
    search = segmentation.createSelectiveSearchSegmentation()
    if mode == "published":
        search.addImage(image)
        search.addGraphSegmentation(segmentation.createGraphSegmentation(0.9, 300.0, 100))
        search.addStrategy(
            segmentation.createSelectiveSearchSegmentationStrategyMultiple(
                segmentation.createSelectiveSearchSegmentationStrategyColor(),
                segmentation.createSelectiveSearchSegmentationStrategyTexture(),
                segmentation.createSelectiveSearchSegmentationStrategySize(),
                segmentation.createSelectiveSearchSegmentationStrategyFill(),
            )
        )
    else:
        search.setBaseImage(image)
        if mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
    rectangles = np.asarray(search.process(), dtype=np.float32).reshape(-1, 4)
    boxes = np.unique(rectangles, axis=0)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def filter_boxes(boxes: np.ndarray, height: int, width: int, settings: ProposalSettings) -> np.ndarray:
    """Keep boxes of sensible size and shape.

    Args:
        boxes: float ``[n, 4]`` xyxy pixels of an image of ``height`` by ``width``.

    Returns:
        The kept rows in their order.
    """
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    keep = (w >= settings.min_side) & (h >= settings.min_side) & (w > 0) & (h > 0)
    keep &= (w <= settings.max_aspect * h) & (h <= settings.max_aspect * w)
    keep &= np.sqrt(w * h) <= settings.max_relative_size * np.sqrt(float(width * height))
    return boxes[keep]


def suppress(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Greedy suppression in the order given: a box goes if an earlier kept one overlaps it by more than ``iou``."""
    if len(boxes) == 0:
        return boxes
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    earlier_first = np.arange(len(boxes), 0, -1, dtype=np.float32)
    kept = cv2.dnn.NMSBoxes(xywh, earlier_first, 0.0, iou)
    return boxes[np.sort(np.asarray(kept, np.int64))]


def propose(image: np.ndarray, settings: ProposalSettings, image_seed: int = 0) -> np.ndarray:
    """Proposals of one image, in an order drawn from ``(settings.seed, image_seed)``.

    The order is random because "the first k boxes of the file" (what the published code takes) is then also
    "k randomly selected boxes" (what the paper says). It does not depend on processes or on the order of images.

    Args:
        image: uint8 ``[H, W, 3]``, BGR.

    Returns:
        float32 ``[n, 4]`` xyxy pixels of ``image``.

    Raises:
        ValueError: for anything but a colour image of 8 bits.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"selective search takes uint8 [H, W, 3], got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if settings.max_side and max(height, width) > settings.max_side:
        scale = settings.max_side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        factor = np.float32([width / size[0], height / size[1]] * 2)
        boxes = selective_search(small, settings.mode) * factor
    else:
        boxes = selective_search(image, settings.mode)
    boxes = filter_boxes(boxes, height, width, settings)
    order = np.random.default_rng((settings.seed, image_seed)).permutation(len(boxes))
    return suppress(np.ascontiguousarray(boxes[order]), settings.nms_iou)
