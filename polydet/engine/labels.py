"""Which labels a run is about, from its cards or, in a model file, from the file."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from polydet.data import get_card, label_space_of
from polydet.engine.errors import ConfigError
from polydet.text import LabelSpace, OpenVocabulary, clean_name
from polydet.weight_files import CheckpointError

logger = logging.getLogger(__name__)
ClassNames = tuple[Sequence[str], Sequence[str]]

WITHOUT_CLASSES = ("grounding", "caption_csv", "webdataset", "class_folders")  # phrases, captions, one label an image


def label_space(cfg: DictConfig) -> LabelSpace | None:
    """Joint labels of the training datasets; None for a config that names no dataset with classes of boxes."""
    if "labels" in cfg:  # of a model file
        return instantiate(cfg.labels)
    return _space_of(cfg, cards_of(cfg))


def _space_of(cfg: DictConfig, cards: Sequence[str]) -> LabelSpace | None:
    names = [name for name in cards if get_card(name).format not in WITHOUT_CLASSES]
    return label_space_of(names, cfg.dataloader.train.get("merge", "none")) if names else None


def cards_of(cfg: DictConfig) -> list[str]:
    """Cards whose classes are the model's labels; none for a model file, which has its labels in it."""
    return [] if "labels" in cfg else list((cfg.dataloader.get("train") or {}).get("datasets", []))


def refuse_other_labels(cfg: DictConfig) -> None:
    """The config of a model file has the file's labels; the cards that it is to train on must have the same.

    Raises:
        ConfigError: they have not.
    """
    if "labels" not in cfg:
        return
    stored, cards = label_space(cfg), _space_of(cfg, list(cfg.dataloader.train.datasets))
    if stored is None or cards is None or cards.names != stored.names:
        raise ConfigError(
            f"the model file was trained on {len(stored or ())} labels, the cards in dataloader.train.datasets have "
            f"{len(cards or ())} or others: train from the config of the model with train.init_checkpoint=FILE"
        )


def is_open_vocabulary(model: nn.Module) -> bool:
    """Whether a model takes any words (``set_vocabulary``) rather than having fixed classes."""
    return isinstance(model, OpenVocabulary)


def closed_space(cfg: DictConfig, model: nn.Module) -> LabelSpace | None:
    """The labels that a model of fixed classes predicts; None for a model of words."""
    return None if is_open_vocabulary(model) else label_space(cfg)


def closed_names(cfg: DictConfig, model: nn.Module) -> tuple[str, ...] | None:
    """The classes of a model that has fixed ones; None for a model of words."""
    space = closed_space(cfg, model)
    return None if space is None else space.names


def trained_words(cfg: DictConfig) -> tuple[str, ...]:
    """The classes of the training datasets as words, each once, as it is spelled first."""
    space = label_space(cfg)
    words: dict[str, str] = {}
    for name in space.names if space is not None else ():
        words.setdefault(clean_name(name).lower(), name)
    return tuple(words.values())


def labels_of(space: LabelSpace) -> dict[str, Any]:
    """A label space as plain data; ``polydet.text.stored_label_space`` reads it back."""
    return {"merge": space.merge, "datasets": [[name, list(space.names_of(name))] for name in space.datasets]}


def test_size(cfg: DictConfig) -> tuple[int, int]:
    """(short side, longest side) of the test mapper's resize; (0, 0) when it does not resize."""
    augmentations: Any = OmegaConf.select(cfg, "dataloader.test.mapper.augmentations") or []
    nodes: Sequence[Any] = augmentations if isinstance(augmentations, ListConfig) else [augmentations]
    for node in nodes:
        short = node.get("short", node.get("short_edge_length"))
        if short is not None:
            short = short[0] if isinstance(short, ListConfig) else short
            return int(short), int(node.get("max_size", 1333))
    return 0, 0


def names_by_name(
    checkpoint: Mapping[str, Any],
    cfg: DictConfig,
    model: nn.Module,
    given: Sequence[str] = (),
    complete: bool = True,
) -> ClassNames | None:
    """(names in the checkpoint, names of the model) where class rows are to be carried over by name.

    Args:
        checkpoint: with ``labels`` where one of our own runs or files wrote it.
        given: ``train.init.class_names``, for a checkpoint without.
        complete: every class of the model must be in the checkpoint (evaluation).

    Raises:
        CheckpointError: the checkpoint lacks classes of the model, or names others than those given.
    """
    old = stored_names(checkpoint["labels"]) if checkpoint.get("labels") else ()
    if given and old and _plain(given) != _plain(old):
        raise CheckpointError(
            f"train.init.class_names names {len(given)} classes ({', '.join(given[:5])} ...), but the checkpoint was "
            f"trained on {len(old)}: {', '.join(old[:5])} ...; leave it out, the checkpoint knows its classes"
        )
    space = label_space(cfg) if given or old else None
    if space is None or (complete and is_open_vocabulary(model)):  # words have a fingerprint of their own
        return None
    if given:
        return list(given), space.names
    if old == space.names:
        return None
    lacking = [name for name in space.names if name not in old]
    twice = len(set(old)) < len(old)
    if complete and (lacking or twice):
        what = f"has no {', '.join(lacking[:5])}" if lacking else "has names that stand for two classes"
        raise CheckpointError(
            f"the checkpoint was trained on {len(old)} classes ({', '.join(old[:5])} ...), the cards now name "
            f"{len(space)}: it {what}. Name the cards that it was trained on, or train from it (train.init_checkpoint)"
        )
    logger.warning("the checkpoint has other classes than the cards, or another order: rows are taken by name")
    return old, space.names


def check_rows(names: ClassNames | None, transferred: Mapping[str, tuple[int, int]]) -> None:
    """Names that were to carry class rows over must have found some.

    Args:
        transferred: of the load's ledger.

    Raises:
        CheckpointError: no tensor of the checkpoint has a row for each of its names, or none is a class of the model.
    """
    if names is None or _plain(names[0]) == _plain(names[1]) or any(rows for rows, _ in transferred.values()):
        return
    old, new = names
    raise CheckpointError(
        f"train.init.class_names names {len(old)} classes ({', '.join(old[:5])} ...), the model has {len(new)} "
        f"({', '.join(new[:5])} ...): "
        + ("none of them is the same" if transferred else f"no tensor of the checkpoint has {len(old)} rows")
    )


def _plain(names: Sequence[str]) -> list[str]:
    return [clean_name(name).lower() for name in names]


def stored_names(labels: Mapping[str, Any]) -> tuple[str, ...]:
    """Joint names of what :func:`labels_of` gave."""
    return LabelSpace({name: list(names) for name, names in labels["datasets"]}, labels["merge"]).names
