"""The folder of a run."""

import contextlib
import logging
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils import logger as logger_module
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf

from polydet.engine.config import ConfigError, flatten, save_config
from polydet.engine.distributed import on_main
from polydet.engine.folder import after_move, move_aside
from polydet.engine.resume import saved_config
from polydet.files import remove_leftovers, write_text

logger = logging.getLogger(__name__)

LOGGERS = ("polydet", "scaledet", "metr", "codetr", "aligndet", "detclipv2", "detectron2", "fvcore")


def prepare_output(cfg: DictConfig, resume: bool, eval_only: bool) -> Path:
    """Set up logs in a folder that :func:`~polydet.engine.folder.open_folder` opened; save the config of a new run.

    A run that begins anew moves the files of an earlier one aside.

    Args:
        resume: the folder may hold a run, which goes on; its config is saved when that is sure.
        eval_only: the folder may hold a run, which is evaluated; its ``config.yaml`` stays and this config becomes
            ``config_eval.yaml``.

    Raises:
        ConfigError: another config file was trained there.
    """
    output_dir = Path(cfg.train.output_dir)
    fresh = not (resume or eval_only)
    if fresh:
        _refuse_other_run(cfg, output_dir)
    moved = on_main(move_aside, output_dir) if fresh else None
    log_to(output_dir)
    if moved is not None:
        logger.info("an earlier run was here: its files are in %s, which nothing needs", moved)
        cfg.train.init_checkpoint = after_move(output_dir, moved, str(cfg.train.init_checkpoint or ""))
    if recipe := OmegaConf.select(cfg, "source.recipe"):
        logger.info("recipe: %s", "\n  ".join(recipe))
    if comm.is_main_process() and not eval_only:  # a run that trains may be evaluated meanwhile
        _tidy(output_dir)
    if not resume:
        write_settings(cfg, output_dir, eval_only)
    return output_dir


def write_settings(cfg: DictConfig, folder: Path, eval_only: bool = False) -> None:
    """Save the config as it is written and as it is resolved; on the main process."""
    if not comm.is_main_process():
        return
    name = "config_eval" if eval_only and (folder / "config.yaml").is_file() else "config"
    save_config(cfg, folder / f"{name}.yaml")
    lines = "\n".join(f"{key} = {value}" for key, value in flatten(_resolved(cfg)).items())
    write_text(folder / f"{name}_resolved.txt", lines + "\n")


def _tidy(folder: Path) -> None:
    """Remove what a killed run was writing: nothing else trains here, and a checkpoint may be large."""
    for removed in remove_leftovers(folder):
        logger.info("removed %s, left by a run that was killed while it wrote", removed)


def _refuse_other_run(cfg: DictConfig, folder: Path) -> None:
    """A folder that holds checkpoints belongs to the run of one config file."""
    saved = saved_config(folder) if (folder / "last_checkpoint").is_file() else None
    if saved is None:
        return
    source = OmegaConf.select(saved, "source.file")
    mine = OmegaConf.select(cfg, "source.file")
    if source and mine and Path(source).absolute() not in (Path(mine).absolute(), (folder / "config.yaml").absolute()):
        raise ConfigError(
            f"train.output_dir={str(folder)!r} holds checkpoints of {source}, not of {mine}: "
            "give this run another train.output_dir, or remove that folder"
        )


def log_to(folder: Path) -> None:
    """Log to the terminal and to this folder, no longer to that of an earlier run or stage of the process."""
    setup_logger.cache_clear()
    if hasattr(logger_module, "_cached_log_stream"):  # by name, though the file of that name may have been moved
        logger_module._cached_log_stream.cache_clear()
    for name in LOGGERS:
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
        setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name, abbrev_name=name[:2])


def _resolved(cfg: DictConfig) -> DictConfig:
    copy = cfg.copy()
    with contextlib.suppress(Exception):  # keys the engine fills in later stay as written
        OmegaConf.resolve(copy)
    return copy
