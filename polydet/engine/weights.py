"""Which weights an evaluation or an application loads: one rule, said in the log."""

import logging
import os
import re
import zipfile
from pathlib import Path

from omegaconf import DictConfig

from polydet.engine.config import ConfigError
from polydet.weight_files import CheckpointError

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"model_(\d+)\.pth")


def own_weights(cfg: DictConfig, explicit: bool | None = None, best: bool = False) -> Path:
    """The checkpoint that an evaluation of ``cfg`` loads.

    In this order: ``train.init_checkpoint`` where it is named for this evaluation; the weights of the run in
    ``train.output_dir``, see :func:`weights_in`; what the config starts from, unless that is an earlier stage.

    Args:
        cfg: a config or a stage of one.
        explicit: whether ``train.init_checkpoint`` is named for this evaluation; None: whether an override named it,
            or it is another than the file gave (:func:`is_named`).
        best: take the run's best checkpoint by its ``train.best_metric`` rather than its last.

    Raises:
        ConfigError: there is none.
        CheckpointError: ``best`` is asked for and the run kept none.
    """
    start = str(cfg.train.init_checkpoint or "")
    folder = Path(cfg.train.output_dir)
    if start and (is_named(cfg) if explicit is None else explicit):
        logger.info("evaluating %s, as named", start)
        return Path(start)
    found = weights_in(folder, best)
    if found is not None:
        if start:
            logger.info("not what the run started from, %s; to evaluate that, name train.init_checkpoint", start)
        return found
    if start and not start.startswith("stage:"):
        logger.info("evaluating %s, which the config starts from: %s holds no checkpoint", start, folder)
        return Path(start)
    raise ConfigError(
        f"--eval-only needs train.init_checkpoint=..., and neither {folder / 'model_final.pth'} nor another checkpoint "
        "is there"
    )


def weights_in(folder: str | os.PathLike[str], best: bool = False) -> Path | None:
    """The weights of the run in ``folder``: its final ones, else its newest whole checkpoint; None without any.

    Raises:
        CheckpointError: ``best`` is asked for and the run kept none.
    """
    folder = Path(folder)
    final, top = folder / "model_final.pth", folder / "model_best.pth"
    if best:
        if not top.is_file():
            raise CheckpointError(
                f"{folder} has no {top.name}; a run keeps one with train.best_metric=DATASET/TASK/NAME"
            )
        logger.info("weights: the best of the run, %s", top)
        return top
    if final.is_file():
        logger.info("weights: the final ones of the run, %s", final)
        return final
    for path in sorted(folder.glob("model_*.pth"), key=_iteration, reverse=True):
        if _iteration(path) >= 0 and zipfile.is_zipfile(path):  # a torn copy has lost its directory, at the end
            logger.warning("weights: the run is not finished, its newest checkpoint is %s", path)
            return path
    return None


def use_weights(cfg: DictConfig, path: Path) -> None:
    """Let ``cfg`` start from ``path``; renaming and skipping is only for weights that are not the run's own."""
    cfg.train.init_checkpoint = str(path)
    if path.resolve().parent == Path(cfg.train.output_dir).resolve():
        cfg.train.init.update(key_map="", class_names=[], skip=[])


def is_named(cfg: DictConfig) -> bool:
    """Whether ``train.init_checkpoint`` was named by an override, or set since the config was loaded."""
    start = str(cfg.train.init_checkpoint or "")
    source = cfg.get("source") or {}
    return bool(start) and "start" in source and start != source["start"]


def _iteration(path: Path) -> int:
    match = _PERIODIC.fullmatch(path.name)
    return int(match.group(1)) if match else -1
