"""Proposals as a dataset: making them for a card, reading them back, loading two views."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligndet.proposal_columns import CATEGORY, ProposalColumns
from aligndet.proposal_run import ImageRecord, run
from aligndet.proposals import Mode, ProposalSettings
from polydet.data import AnnotationTable, DatasetCard, DatasetError, build_train_loader, load_card, register_card
from polydet.data.card import find_card
from polydet.data.columns import Strings
from polydet.data.readers import READERS

FORMAT = "proposal_columns"


def make_proposals(
    dataset: str,
    output: str | os.PathLike[str],
    workers: int = 1,
    mode: Mode = "published",
    shard_size: int = 32,
    write_json: bool = False,
    **settings: Any,
) -> ProposalColumns:
    """Selective search on the images of a card; its annotations are not used. Resumes; see :func:`run`.

    Args:
        dataset: card name.
        output: path without suffix; ``<output>.columns/`` is what :func:`build_pretrain_loader` reads.
        workers: processes.
        settings: further fields of :class:`ProposalSettings`.
    """
    table = load_card(dataset)
    records = [ImageRecord(_integer_id(table, i), table.files[i].decode()) for i in range(len(table))]
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    config = ProposalSettings(mode=mode, **settings)
    return run(records, Path(table.image_root), output, config, workers, shard_size, write_json)


def _integer_id(table: AnnotationTable, row: int) -> int:
    """Image id, or the row where ids are strings."""
    value = table.image_id(row)
    return value if isinstance(value, int) else row


def read_proposal_columns(card: DatasetCard, path: Path, image_root: Path) -> tuple[AnnotationTable, DatasetCard]:
    """Reader of the format ``proposal_columns``: the table maps the files, nothing is parsed."""
    columns = ProposalColumns.load(path.parent)
    table = AnnotationTable(
        name=card.name,
        image_root=str(image_root),
        files=Strings.of(columns.file_names),
        ids=np.asarray(columns.image_ids),
        heights=np.ascontiguousarray(columns.sizes[:, 0]),
        widths=np.ascontiguousarray(columns.sizes[:, 1]),
        offsets=np.asarray(columns.offsets),
        boxes=columns.boxes,
        labels=columns.labels.astype(np.int32),
        flags=np.zeros(len(columns.boxes), np.uint8),
    )
    return table, card


READERS[FORMAT] = read_proposal_columns
# images without any annotation file: the proposals are all there is (table 8)
register_card(
    DatasetCard(
        name="imagenet_subset_proposals",
        json_file="imagenet/subset_proposals.columns/columns.json",
        image_root="imagenet/train",
        format=FORMAT,
        classes=(CATEGORY,),
        category_ids=(1,),
        about="ImageNet images with about as many proposals as COCO train2017",
        url="https://image-net.org",
        licence="research use",
    )
)


def proposal_card(dataset: str, proposals: str | os.PathLike[str]) -> DatasetCard:
    """Register the proposals of a card's images as a card of their own.

    Args:
        dataset: the card whose images they are.
        proposals: path without suffix, as it was given when they were made.

    Raises:
        DatasetError: they were not made, or not finished.
    """
    folder = Path(f"{proposals}.columns").absolute()
    try:
        columns = ProposalColumns.load(folder)
    except FileNotFoundError as error:
        raise DatasetError(
            f"no proposals for {dataset!r}",
            file=folder,
            remedy=f"python tools/selective_search.py --dataset {dataset} --output {proposals}",
        ) from error
    card = DatasetCard(
        name=f"{dataset}+{Path(proposals).name}",
        json_file=str(folder / "columns.json"),
        image_root=str(Path(load_card(dataset).image_root).absolute()),
        format=FORMAT,
        classes=columns.class_names,
        category_ids=tuple(range(1, len(columns.class_names) + 1)),
        about=f"selective search on {find_card(dataset).name}",
    )
    return register_card(card, overwrite=True)


def build_pretrain_loader(
    datasets: Sequence[str],
    proposals: str | Sequence[str] | None,
    mapper: Callable[[dict[str, Any]], dict[str, Any] | None],
    total_batch_size: int,
    seed: int = 0,
    start_iter: int = 0,
    num_workers: int = 2,
    aspect_ratio_grouping: bool = False,
) -> Any:
    """The train loader of box-domain pre-training: images of cards, boxes of selective search, no annotation.

    Images without proposals are left out, as published.

    Args:
        datasets: cards whose images are used.
        proposals: path without suffix, one per dataset; None where the datasets are cards of proposals themselves.
        mapper: a :class:`aligndet.views.TwoViewMapper`.
        total_batch_size, seed, start_iter, num_workers, aspect_ratio_grouping: see
            :func:`polydet.data.build_train_loader`.
    """
    names = list(datasets)
    if proposals is not None:
        paths = [proposals] if isinstance(proposals, str) else list(proposals)
        if len(paths) != len(names):
            raise ValueError(f"{len(paths)} proposal files for the {len(names)} datasets {names}")
        names = [proposal_card(name, path).name for name, path in zip(names, paths)]
    return build_train_loader(
        datasets=names,
        mapper=mapper,
        total_batch_size=total_batch_size,
        merge="name",
        seed=seed,
        start_iter=start_iter,
        num_workers=num_workers,
        aspect_ratio_grouping=aspect_ratio_grouping,
    )
