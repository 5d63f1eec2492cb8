"""Train and test loaders."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils import data as torchdata

from polydet.data.columns import AnnotationTable
from polydet.data.errors import DatasetError
from polydet.data.load import load_card
from polydet.data.samplers import IndexStream, Sampler, UniformSampler
from polydet.data.union import Union

__all__ = ["TestLoader", "TrainLoader", "build_test_loader", "build_train_loader"]

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], "dict[str, Any] | None"]
_SKIPPED = "_skipped"
_ATTEMPTS = 20
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def build_train_loader(
    datasets: Sequence[str],
    mapper: Mapper,
    total_batch_size: int,
    sampler: Sampler | None = None,
    merge: Literal["none", "name"] = "none",
    seed: int = 0,
    start_iter: int = 0,
    num_workers: int = 2,
    aspect_ratio_grouping: bool = False,
    filter_empty: bool = True,
    max_skipped: float = 20,
) -> TrainLoader:
    """An infinite loader over the union of cards; yields lists of mapped dicts, this process's share of each batch.

    The stream of samples is a function of (datasets, sampler, seed) alone: sample p of the stream is always the same
    image under the same random numbers, whatever the number of workers, processes or restarts. Process r of W takes
    samples r, r + W, ... of every global batch, so W processes together see the batch that one would see.

    Args:
        datasets: card names.
        mapper: dataset dict -> model input; may return None to have another image take its place.
        total_batch_size: images per global batch, over all processes.
        sampler: default `UniformSampler()`.
        merge: see `label_space_of`.
        start_iter: first batch, for exact resume; earlier ones are skipped without reading images.
        aspect_ratio_grouping: batches hold only landscape or only portrait images.
        filter_empty: leave out images without annotations.
        max_skipped: how many unreadable images are replaced (counted and logged) before it is an error; below 1 the
            share of the images.
    """
    world = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world:
        raise ValueError(f"total_batch_size={total_batch_size} must be a positive multiple of {world} processes")
    union = Union(datasets, merge, filter_empty)
    sampler = UniformSampler() if sampler is None else sampler
    sampler.bind(union)
    union.release()
    return TrainLoader(
        union, mapper, sampler, total_batch_size, seed, start_iter, num_workers, aspect_ratio_grouping, max_skipped
    )


class TrainLoader:
    """See `build_train_loader`.

    Attributes:
        images_per_epoch: expected number of samples in one epoch of the sampler.
        label_space: the joint labels that `gt_classes` index.
        skipped: file -> why, of images that could not be used so far.
        images_drawn, labels_drawn: samples so far by dataset, and images with each joint label.
    """

    def __init__(
        self,
        union: Union,
        mapper: Mapper,
        sampler: Sampler,
        total_batch_size: int,
        seed: int,
        start_iter: int,
        num_workers: int,
        aspect_ratio_grouping: bool,
        max_skipped: float,
    ):
        self.union, self.sampler, self.seed = union, sampler, seed
        self.total_batch_size, self.start_iter = total_batch_size, start_iter
        self.label_space = union.label_space
        self.images_per_epoch = sampler.images_per_epoch
        self.max_skipped = _limit(max_skipped, len(union))
        self.skipped: dict[str, str] = {}
        self.images_drawn: Counter[str] = Counter()
        self.labels_drawn = np.zeros(union.num_labels, np.int64)
        batches = _Batches(union, IndexStream(sampler, seed), total_batch_size, start_iter, aspect_ratio_grouping)
        self._loader = torchdata.DataLoader(
            _Samples(union, mapper, seed),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_identity,
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # else the loader draws from the global one
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for number, batch in enumerate(self._loader, 1):
            batch = _count_skipped(batch, self.skipped, self.max_skipped)
            self._count(batch)
            if number >= 100 and str(number).strip("0") in ("1", "3"):
                logger.info("after %d batches: %s", number, self.describe_drawn())
            yield batch

    def _count(self, batch: list[dict[str, Any]]) -> None:
        for sample in batch:
            self.images_drawn[sample["dataset_name"]] += 1
            if "instances" in sample:
                labels = np.unique(sample["instances"].gt_classes.numpy())
                self.labels_drawn[labels] += 1

    def describe_drawn(self) -> str:
        """Realised share of each dataset and the labels that came most and least often (this process's samples)."""
        total = max(sum(self.images_drawn.values()), 1)
        shares = ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in self.images_drawn.items())
        order = np.argsort(-self.labels_drawn, kind="stable")
        names = self.label_space.names

        def listed(labels: np.ndarray) -> str:
            return ", ".join(f"{names[k]} {100 * self.labels_drawn[k] / total:.2f} %" for k in labels)

        seen = int((self.labels_drawn > 0).sum())
        least = order[:seen][-3:]
        return (
            f"images from {shares}; {seen} of {len(names)} labels seen; in most images {listed(order[:3])}; "
            f"in fewest {listed(least)}"
        )


class _Batches(torchdata.Sampler):
    """This process's (position, index) pairs of every global batch from `start_iter` on."""

    def __init__(self, union: Union, stream: IndexStream, size: int, start_iter: int, grouped: bool):
        self._stream, self._size, self._start = stream, size, start_iter
        self._rank, self._world = comm.get_rank(), comm.get_world_size()
        heights, widths = union.sizes()
        self._portrait = (heights >= widths) if grouped else None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._grouped() if self._portrait is not None else self._plain():
            yield batch[self._rank :: self._world]

    def _plain(self) -> Iterator[list[tuple[int, int]]]:
        pairs = self._stream.from_position(self._start * self._size)
        while True:
            yield [next(pairs) for _ in range(self._size)]

    def _grouped(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of one orientation; what is left waiting depends on the whole past, so that is replayed."""
        assert self._portrait is not None
        waiting: dict[bool, list[tuple[int, int]]] = defaultdict(list)
        made = 0
        for pair in self._stream.from_position(0):
            group = waiting[bool(self._portrait[pair[1]])]
            group.append(pair)
            if len(group) == self._size:
                if made >= self._start:
                    yield group[:]
                made += 1
                group.clear()


class _Samples(torchdata.Dataset):
    """Maps (position, index); an image that cannot be used is replaced by one drawn from (seed, position)."""

    def __init__(self, union: Union, mapper: Mapper, seed: int):
        self._union, self._mapper, self._seed = union, mapper, seed

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Any]:
        position, index = pair
        skipped: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS):
            if attempt:
                index = int(np.random.default_rng((self._seed, position, attempt)).integers(len(self._union)))
            record = self._union[index]
            try:
                with seeded(self._seed, position, attempt):
                    sample = self._mapper(record)
            except DatasetError as error:
                skipped.append((record["file_name"], str(error)))
                continue
            except Exception as error:
                raise RuntimeError(f"mapping {record['file_name']} of {record['dataset_name']} failed") from error
            if sample is not None:
                return {**sample, _SKIPPED: skipped} if skipped else sample
        reasons = "\n".join(f"  {why}" for _, why in skipped[:3]) or "  the mapper returned None each time"
        raise DatasetError(f"{_ATTEMPTS} images in a row could not be used:\n{reasons}")


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The global generators of random, numpy and torch (CPU) seeded from `key`; restored afterwards.

    In a worker process nobody else draws, so nothing is restored there.
    """
    if torchdata.get_worker_info() is not None:
        _seed(key)
        yield
        return
    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    _seed(key)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.random.set_rng_state(state[2])


def _seed(key: Sequence[int]) -> None:
    words = np.random.SeedSequence([k % 2**63 for k in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.random.default_generator.manual_seed(int(words[2]))


def _leave_signals_to_the_run(_worker: int) -> None:
    """A signal to a whole process group is the run's to answer, which needs its workers until it has saved.

    SIGTERM from the run itself, as at its end, is meant for the worker.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=_answer, args=(os.getppid(),), daemon=True).start()


def _answer(run: int) -> None:
    while True:
        signalled = signal.sigwaitinfo(_SIGNALS)
        if signalled.si_signo == signal.SIGTERM and signalled.si_pid == run:
            os._exit(0)


def _limit(max_skipped: float, images: int) -> int:
    """Images that `max_skipped` allows of so many."""
    if isinstance(max_skipped, bool) or max_skipped < 0 or (max_skipped >= 1 and max_skipped != int(max_skipped)):
        raise ValueError(f"max_skipped={max_skipped!r} is neither a whole number of images nor a share below 1")
    return int(max_skipped if max_skipped >= 1 else max_skipped * images)


def _count_skipped(batch: list[dict[str, Any]], known: dict[str, str], limit: int) -> list[dict[str, Any]]:
    for sample in batch:
        for file, why in sample.pop(_SKIPPED, ()):
            if file not in known:
                known[file] = why
                logger.warning("skipped image %d of at most %d: %s", len(known), limit, why)
    if len(known) > limit:
        files = "\n".join(f"  {file}" for file in list(known)[:10])
        raise DatasetError(
            f"{len(known)} images could not be used, more than max_skipped={limit}:\n{files}",
            remedy="repair them (tools/check_datasets.py lists all) or raise max_skipped",
        )
    return batch


def build_test_loader(
    dataset: str, mapper: Mapper, num_workers: int = 2, batch_size: int = 1, max_skipped: float = 20
) -> TestLoader:
    """Every image of a card once, split over the processes; yields lists of mapped dicts.

    A batch holds images that the annotations give one size, so that the test mapper leaves nothing to pad; with
    ``batch_size=1`` they come in the card's order, else each batch in the place of its first image. An image that
    cannot be read is shown to the model as black (its objects count as missed), counted and logged, up to
    `max_skipped` (a number, or below 1 the share of this process's images); a set without a readable one is an error.
    """
    return TestLoader(load_card(dataset), mapper, num_workers, batch_size, max_skipped)


class TestLoader:
    """See `build_test_loader`; `dataset` is the card's data, `len()` the number of batches of this process."""

    __test__ = False  # not a test class

    def __init__(self, dataset: AnnotationTable, mapper: Mapper, num_workers: int, batch_size: int, max_skipped: float):
        if not len(dataset):
            raise DatasetError(f"dataset {dataset.name!r} has no images to evaluate on")
        batches = _SizedBatches(dataset, batch_size)
        self._images = sum(map(len, batches))
        self.dataset, self.max_skipped = dataset, _limit(max_skipped, self._images)
        self.skipped: dict[str, str] = {}
        self._loader = torchdata.DataLoader(
            _TestSamples(dataset, mapper),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_identity,
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # else the loader draws from the global one
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._loader:
            yield _count_skipped(batch, self.skipped, self.max_skipped)
        if self._images and len(self.skipped) == self._images:
            why = next(iter(self.skipped.values()))
            raise DatasetError(
                f"none of the {self._images} images of {self.dataset.name!r} can be read, the first because {why}",
                remedy="look at the card's image_root; tools/check_datasets.py lists what is wrong",
            )


class _SizedBatches(torchdata.Sampler):
    """This process's images in batches of one annotated size, each in the place of its first image."""

    def __init__(self, table: AnnotationTable, size: int):
        if size < 1:
            raise ValueError(f"batch_size={size} must be positive")
        self._batches: list[list[int]] = []
        open_batch: dict[tuple[int, int], list[int]] = {}
        for index in InferenceSampler(len(table)):
            of_size = int(table.heights[index]), int(table.widths[index])
            batch = open_batch.get(of_size)
            if batch is None or len(batch) == size or not all(of_size):  # a size of 0 is not known
                batch = open_batch[of_size] = []
                self._batches.append(batch)
            batch.append(index)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


class _TestSamples(torchdata.Dataset):
    def __init__(self, table: AnnotationTable, mapper: Mapper):
        self._table, self._mapper = table, mapper

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._table.record(index)
        try:
            with seeded(0, index):
                sample = self._mapper(record)
            if sample is None:
                raise DatasetError("the test mapper returned None", file=record["file_name"])
            return sample
        except DatasetError as error:
            height, width = record["height"] or 32, record["width"] or 32
            kept = {key: value for key, value in record.items() if key != "annotations"}
            black = torch.zeros(3, height, width, dtype=torch.uint8)
            return {**kept, "image": black, _SKIPPED: [(record["file_name"], str(error))]}


def _identity(batch: list) -> list:
    return batch
