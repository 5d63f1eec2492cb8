"""Which image comes when: samplers that are functions of (seed, epoch), so a stream can be entered anywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

__all__ = [
    "ClassAwareSampler",
    "FixedRatioSampler",
    "ImageLabels",
    "IndexStream",
    "RepeatFactorSampler",
    "Sampler",
    "SubsetSampler",
    "UniformSampler",
    "class_aware_weights",
    "image_counts",
    "repeat_factors",
]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # boxes sorted at a time: the keys stay in cache and below 2^31


class ImageLabels(Protocol):
    """What a sampler sees of a union of datasets."""

    num_labels: int
    owner: np.ndarray  # int [n], index of the dataset of every image

    @property
    def offsets(self) -> np.ndarray:
        """int64 [n + 1]; the labels of image i are `labels[offsets[i]:offsets[i + 1]]`."""

    @property
    def labels(self) -> np.ndarray:
        """Joint label ids, int [m]."""

    def __len__(self) -> int: ...


class Sampler(Protocol):
    """Draws epochs of image indices."""

    def bind(self, data: ImageLabels) -> None:
        """Learn the data; called once, before anything is drawn."""

    @property
    def images_per_epoch(self) -> float:
        """Expected number of images in an epoch."""

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Image indices of one epoch in order, int64; the same for the same arguments."""


def _generator(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng((int(seed) % 2**63, epoch, stream))


class UniformSampler:
    """Every image once an epoch, in random order."""

    def bind(self, data: ImageLabels) -> None:
        """Learn the number of images."""
        self._size = len(data)

    @property
    def images_per_epoch(self) -> float:
        """Number of images."""
        return float(self._size)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """A permutation of all images."""
        return _generator(seed, epoch).permutation(self._size)


class SubsetSampler(UniformSampler):
    """The same random part of the images every epoch (DetCLIPv2 takes 0.66 million of Objects365 v2).

    Args:
        count: images of the part; all of them where there are fewer.
        subset_seed: of the choice, so that it does not depend on the run's seed.
    """

    def __init__(self, count: int, subset_seed: int = 0):
        self.count, self.subset_seed = count, subset_seed

    def bind(self, data: ImageLabels) -> None:
        """Choose the part."""
        chosen = np.random.default_rng(self.subset_seed).permutation(len(data))[: self.count]
        self._chosen, self._size = np.sort(chosen), len(chosen)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """A permutation of the part."""
        return self._chosen[super().epoch(seed, epoch)]


class RepeatFactorSampler:
    """Images of rare labels come more often (LVIS, appendix B.2), over all datasets together.

    r(c) = max(1, sqrt(t / f(c))) with f(c) the share of *all* images of the union that have label c, r(I) = max over
    the labels of I, fractional parts rounded at random anew each epoch. The factors are exactly those of Detectron2's
    `RepeatFactorTrainingSampler.repeat_factors_from_category_frequency` on the joint dicts.

    Args:
        repeat_threshold: t; ScaleDet and LVIS use 0.001.
    """

    def __init__(self, repeat_threshold: float = 0.001):
        self.repeat_threshold = repeat_threshold

    def bind(self, data: ImageLabels) -> None:
        """Compute the repeat factor of every image."""
        factors = repeat_factors(data.offsets, data.labels, data.num_labels, self.repeat_threshold)
        self._whole = np.trunc(factors).astype(np.int64)
        self._part = factors - self._whole
        self._expected = float(factors.sum(dtype=np.float64))
        logger.info(
            "repeat factors: %d of %d images are repeated, at most %.2f times; %.0f images an epoch",
            int((factors > 1).sum()),
            len(factors),
            float(factors.max(initial=1)),
            self._expected,
        )

    @property
    def images_per_epoch(self) -> float:
        """Sum of the repeat factors."""
        return self._expected

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """A shuffle of all images, each repeated by its rounded factor."""
        rng = _generator(seed, epoch)
        repeats = self._whole + (rng.random(len(self._part), np.float32) < self._part)
        indices = np.repeat(np.arange(len(repeats)), repeats)
        rng.shuffle(indices)
        return indices


class ClassAwareSampler:
    """An image is drawn, with replacement, with probability proportional to the sum over its labels c of
    1 / (images with c): every label comes equally often in expectation (UniDet; ScaleDet table 3).

    Args:
        epoch_size: images per epoch; None: the number of images.
    """

    def __init__(self, epoch_size: int | None = None):
        self.epoch_size = epoch_size

    def bind(self, data: ImageLabels) -> None:
        """Compute the weight of every image."""
        weights = class_aware_weights(data.offsets, data.labels, data.num_labels)
        self._cumulative = _cumulative(weights, "no image has a label")
        self._size = self.epoch_size or len(data)

    @property
    def images_per_epoch(self) -> float:
        """As given."""
        return float(self._size)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Independent draws."""
        return _draw(self._cumulative, _generator(seed, epoch).random(self._size))


class FixedRatioSampler:
    """Datasets in a fixed ratio, whatever their sizes; within a dataset images are drawn with replacement, uniformly
    or class-aware (UniDet's setting of ScaleDet table 3: equal ratios, class-aware on Objects365 and OpenImages).

    Args:
        ratios: one weight per dataset, in the loader's order; None: equal.
        class_aware: positions of the datasets whose images are drawn class-aware.
        epoch_size: images per epoch; None: the number of images.
    """

    def __init__(
        self, ratios: Sequence[float] | None = None, class_aware: Sequence[int] = (), epoch_size: int | None = None
    ):
        self.ratios = None if ratios is None else [float(ratio) for ratio in ratios]
        self.class_aware = [int(which) for which in class_aware]
        self.epoch_size = epoch_size

    def bind(self, data: ImageLabels) -> None:
        """Compute the weight of every image. Raises ValueError if ratios and datasets differ in number."""
        datasets = int(data.owner.max()) + 1
        ratios = np.ones(datasets) if self.ratios is None else np.array(self.ratios)
        if len(ratios) != datasets or (ratios < 0).any() or not ratios.sum():
            raise ValueError(f"ratios {ratios.tolist()} for {datasets} datasets: give one per dataset, none negative")
        if unknown := [which for which in self.class_aware if not 0 <= which < datasets]:
            raise ValueError(f"class_aware names datasets {unknown}, there are {datasets}")
        weights = np.ones(len(data))
        for which in self.class_aware:
            mine = np.flatnonzero(data.owner == which)
            first, last = int(data.offsets[mine[0]]), int(data.offsets[mine[-1] + 1])  # a dataset's images are a run
            offsets = data.offsets[mine[0] : mine[-1] + 2] - first
            weights[mine] = class_aware_weights(offsets, data.labels[first:last], data.num_labels)
        totals = np.bincount(data.owner, weights, minlength=datasets)
        if (totals[ratios > 0] == 0).any():
            raise ValueError("a dataset drawn class-aware has no labels")
        scale = np.divide(ratios, totals, out=np.zeros(datasets), where=totals > 0)
        self._cumulative = _cumulative(weights * scale[data.owner], "all ratios are 0")
        self._size = self.epoch_size or len(data)

    @property
    def images_per_epoch(self) -> float:
        """As given."""
        return float(self._size)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Independent draws."""
        return _draw(self._cumulative, _generator(seed, epoch).random(self._size))


def class_aware_weights(offsets: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Sum over the distinct labels of an image of 1 / (images with that label), float64 [n]."""
    weights = np.zeros(len(offsets) - 1)
    counts = image_counts(offsets, labels, num_labels)
    for start, image, label in _image_label_keys(offsets, labels, num_labels):
        part = np.bincount(image, 1.0 / counts[label])
        weights[start : start + len(part)] += part
    return weights


def _cumulative(weights: np.ndarray, problem: str) -> np.ndarray:
    total = np.cumsum(weights)
    if not len(total) or total[-1] <= 0:
        raise ValueError(problem)
    return total / total[-1]


def _draw(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(cumulative) - 1)


def image_counts(offsets: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Number of images that have each label, int64 [num_labels].

    Args:
        offsets: int64 [n + 1]; labels of image i are `labels[offsets[i]:offsets[i + 1]]`.
    """
    counts = np.zeros(num_labels, np.int64)
    for _, _, label in _image_label_keys(offsets, labels, num_labels):
        counts += np.bincount(label, minlength=num_labels)
    return counts


def _image_label_keys(
    offsets: np.ndarray, labels: np.ndarray, num_labels: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Distinct (image, label) pairs in chunks: first image of the chunk, image - first, label.

    Sorting chunks that stay in cache is many times faster than sorting everything at once; image and label share one
    int32 so that the sort is the vectorised one.
    """
    bits = max(int(num_labels - 1).bit_length(), 1)
    images = len(offsets) - 1
    limit = 1 << (31 - bits)  # images per chunk
    start = 0
    while start < images:
        stop = int(np.searchsorted(offsets, offsets[start] + _CHUNK, side="right")) - 1
        stop = min(max(stop, start + 1), start + limit, images)
        part = labels[offsets[start] : offsets[stop]]
        if len(part):
            high = np.arange(stop - start, dtype=np.int32) << bits
            keys = np.repeat(high, np.diff(offsets[start : stop + 1]))
            keys |= part.astype(np.int32, copy=False)
            keys.sort()
            first = np.ones(len(keys), bool)
            np.not_equal(keys[1:], keys[:-1], out=first[1:])
            keys = keys[first]
            yield start, keys >> bits, keys & np.int32((1 << bits) - 1)
        start = stop


def repeat_factors(offsets: np.ndarray, labels: np.ndarray, num_labels: int, threshold: float) -> np.ndarray:
    """Repeat factor of every image, float32 [n]; see `RepeatFactorSampler`. Arguments as `image_counts`."""
    images = len(offsets) - 1
    factors = np.ones(images, np.float32)
    if not len(labels):
        return factors
    frequency = image_counts(offsets, labels, num_labels) / images
    with np.errstate(divide="ignore"):
        of_label = np.maximum(1.0, np.sqrt(threshold / frequency)).astype(np.float32)
    boosted = of_label > 1  # few labels are, so only their annotations are looked at closely
    for begin in range(0, len(labels), _CHUNK):
        part = labels[begin : begin + _CHUNK]
        rows = np.flatnonzero(boosted[part])
        image = np.searchsorted(offsets, rows + begin, side="right") - 1
        np.maximum.at(factors, image, of_label[part[rows]])
    return factors


class IndexStream:
    """The infinite sequence of a sampler's epochs, one after the other, that can be entered at any position.

    Args:
        sampler: bound to its data.
        seed: of every epoch.
    """

    def __init__(self, sampler: Sampler, seed: int):
        self.sampler, self.seed = sampler, seed

    def from_position(self, position: int) -> Iterator[tuple[int, int]]:
        """(position, image index) from `position` on; skipped epochs are drawn but no image is read."""
        epoch = begin = 0
        while True:
            indices = self.sampler.epoch(self.seed, epoch)
            if not len(indices):
                raise ValueError("the sampler gave an empty epoch")
            first = max(position - begin, 0)
            yield from zip(range(begin + first, begin + len(indices)), indices[first:].tolist())
            begin += len(indices)
            epoch += 1
