"""What the cards of a run look like to a detector: images, boxes at the training size, objects an image, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polydet.data.card import find_card
from polydet.data.columns import CROWD
from polydet.data.errors import DatasetError
from polydet.data.union import Union

__all__ = ["DataStatistics", "data_statistics"]


@dataclass(frozen=True)
class DataStatistics:
    """Numbers of the union of cards.

    Attributes:
        datasets: card names.
        images: images with at least one box.
        labels: joint labels without regard to equal names (`merge="none"`).
        shared_names: names that two cards have both.
        federated: whether a card's images are labelled for verified classes only.
        image_sizes: float64 [n, 2] height and width of each such image, pixels.
        boxes: float64 [m, 2] width and height of each box, pixels of its own image.
        image_of_box: int64 [m] index of the image of each box.
    """

    datasets: tuple[str, ...]
    images: int
    labels: int
    shared_names: tuple[str, ...]
    federated: bool
    image_sizes: np.ndarray
    boxes: np.ndarray
    image_of_box: np.ndarray

    def scales(self, short: int, max_size: int) -> np.ndarray:
        """Factor from each image to its training size: short side `short`, long side at most `max_size`; [n]."""
        low, high = self.image_sizes.min(1), self.image_sizes.max(1)
        return np.minimum(short / low, max_size / high)

    def sides(self, short: int, max_size: int) -> np.ndarray:
        """Width and height of each box at the training size, pixels; [m, 2]."""
        return self.boxes * self.scales(short, max_size)[self.image_of_box, None]

    def objects_per_image(self, quantile: float) -> int:
        """Boxes in an image that has more of them than `quantile` of the images."""
        return int(np.quantile(np.bincount(self.image_of_box, minlength=self.images), quantile, method="higher"))


def data_statistics(datasets: Sequence[str]) -> DataStatistics:
    """Read the cards; crowds do not count, nor images without a box.

    Raises:
        DatasetError: no card is named, a file is missing or broken, or there is no box at all.
    """
    if not datasets:
        raise DatasetError("no training dataset is named", remedy="dataloader.train.datasets=[my_train]")
    union = Union(datasets)
    sizes, boxes, owners, start = [], [], [], 0
    for table in union.tables:
        counted = (table.flags & CROWD) == 0
        image = np.repeat(np.arange(len(table)), np.diff(table.offsets))[counted]
        used, owner = np.unique(image, return_inverse=True)
        sizes.append(np.stack([table.heights[used], table.widths[used]], 1).astype(np.float64))
        boxes.append(np.asarray(table.boxes, np.float64)[counted, 2:])
        owners.append(owner + start)
        start += len(used)
    if not start:
        raise DatasetError(f"no image of {', '.join(datasets)} has a box")
    names = [name.lower() for name in union.label_space.names]
    shared = sorted({name for name in names if names.count(name) > 1})
    return DataStatistics(
        datasets=tuple(datasets),
        images=start,
        labels=len(names),
        shared_names=tuple(shared),
        federated=any(find_card(name).label_policy == "federated" for name in datasets),
        image_sizes=np.concatenate(sizes),
        boxes=np.concatenate(boxes),
        image_of_box=np.concatenate(owners),
    )
