"""Several train loaders in turn: every step holds one kind of data, with its own batch size and resolution."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import instantiate

from polydet.data.loader import TrainLoader, build_train_loader

__all__ = ["MixedLoader", "build_mixed_loader"]

logger = logging.getLogger(__name__)


def build_mixed_loader(
    sources: Mapping[str, Mapping[str, Any]],
    total_batch_size: int,
    datasets: Sequence[str] | None = None,
    seed: int = 0,
    start_iter: int = 0,
) -> MixedLoader:
    """An infinite loader that draws each global batch from one source; all processes draw from the same.

    An epoch is every source's batches once, shuffled; the order is a function of (seed, epoch), so training can be
    entered at any step.

    Args:
        sources: name -> arguments of `build_train_loader` (its own `total_batch_size` among them), and
            `repeat`: how often its images are seen in an epoch (default 1), or
            `batches_per_epoch`: how many of its batches an epoch has, whatever its size;
            a source with `batches_per_epoch=0` is left out.
        total_batch_size: of the run; epochs are counted as if every batch had this size. With gradient accumulation a
            micro-batch is one batch of one source.
        datasets: all cards of the sources, for whoever checks that the data is there; must name them all.

    Raises:
        ValueError: no source, or `datasets` that lacks a card of a source.
    """
    used = {name: dict(source) for name, source in sources.items() if source.get("batches_per_epoch") != 0}
    if not used:
        raise ValueError("a mixed loader needs at least one source")
    missing = sorted({card for source in used.values() for card in source["datasets"]} - set(datasets or ()))
    if datasets is not None and missing:
        raise ValueError(f"dataloader.train.datasets lacks {missing}, which sources of the mixed loader use")
    loaders, counts = {}, {}
    for name, source in used.items():
        repeat, fixed = source.pop("repeat", 1), source.pop("batches_per_epoch", None)
        source = {key: instantiate(value) for key, value in source.items()}
        used[name] = source
        loaders[name] = _loader(name, source, seed, 0)
        epoch = repeat * loaders[name].images_per_epoch / source["total_batch_size"]
        counts[name] = max(1, round(epoch)) if fixed is None else int(fixed)
    order = SourceOrder(counts, seed)
    if start_iter:
        done = order.drawn(start_iter)
        loaders = {name: _loader(name, source, seed, done[name]) for name, source in used.items()}
    for name, count in counts.items():
        logger.info(
            "%s: %d of %d batches an epoch, %d images each", name, count, order.length, used[name]["total_batch_size"]
        )
    return MixedLoader(loaders, order, total_batch_size, start_iter)


def _loader(name: str, source: Mapping[str, Any], seed: int, start_iter: int) -> TrainLoader:
    own = int(np.random.SeedSequence([seed % 2**63, *name.encode()]).generate_state(1)[0])
    return build_train_loader(**source, seed=own, start_iter=start_iter)


class SourceOrder:
    """Which source comes when.

    Args:
        counts: batches of each source in an epoch.
        seed: of the order.
    """

    def __init__(self, counts: Mapping[str, int], seed: int) -> None:
        self.names, self.counts, self.seed = list(counts), np.array(list(counts.values())), seed
        self.length = int(self.counts.sum())

    def epoch(self, epoch: int) -> np.ndarray:
        """Index of the source of every batch of one epoch, int64 `[length]`."""
        order = np.repeat(np.arange(len(self.names)), self.counts)
        np.random.default_rng((self.seed % 2**63, epoch)).shuffle(order)
        return order

    def drawn(self, step: int) -> dict[str, int]:
        """How many batches each source gave before `step`."""
        epochs, rest = divmod(step, self.length)
        counts = epochs * self.counts + np.bincount(self.epoch(epochs)[:rest], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist()))

    def since(self, step: int) -> Iterator[str]:
        """Names of the sources from `step` on."""
        epoch, rest = divmod(step, self.length)
        while True:
            yield from (self.names[i] for i in self.epoch(epoch)[rest:])
            epoch, rest = epoch + 1, 0


class MixedLoader:
    """See `build_mixed_loader`.

    Attributes:
        images_per_epoch: batches of an epoch times `total_batch_size`.
        loaders: the source's loaders.
    """

    def __init__(
        self, loaders: Mapping[str, TrainLoader], order: SourceOrder, total_batch_size: int, start_iter: int
    ) -> None:
        self.loaders, self.order, self.start_iter = dict(loaders), order, start_iter
        self.images_per_epoch = order.length * total_batch_size

    @property
    def skipped(self) -> dict[str, str]:
        """File -> why, of images of all sources that could not be used."""
        return {file: why for loader in self.loaders.values() for file, why in loader.skipped.items()}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        running: dict[str, Iterator[list[dict[str, Any]]]] = {}
        for name in self.order.since(self.start_iter):
            if name not in running:  # workers start when they are needed
                running[name] = iter(self.loaders[name])
            yield next(running[name])
