"""The folder of a run."""

import contextlib
import logging
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf

from polydet.engine.config import ConfigError, flatten, save_config
from polydet.files import remove_leftovers, write_text

logger = logging.getLogger(__name__)

LOGGERS = ("polydet", "scaledet", "metr", "codetr", "aligndet", "detclipv2", "detectron2", "fvcore")


def prepare_output(cfg: DictConfig, resume: bool, eval_only: bool) -> Path:
    """Make the folder, try to write there, set up logs and save the config, as it is written and resolved.

    Args:
        resume: the folder may hold a run, which goes on.
        eval_only: the folder may hold a run, which is evaluated; its ``config.yaml`` stays and this config becomes
            ``config_eval.yaml``.

    Raises:
        ConfigError: another config file was trained there.
        OSError: nothing can be written there.
    """
    output_dir = Path(cfg.train.output_dir)
    if not (resume or eval_only):
        _refuse_other_run(cfg, output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".write_test_{comm.get_rank()}"
        probe.write_text("ok")
        probe.unlink()
    except OSError as error:
        raise OSError(f"train.output_dir={str(output_dir)!r} cannot be written: {error}") from error
    log_to(output_dir)
    if recipe := OmegaConf.select(cfg, "source.recipe"):
        logger.info("recipe: %s", "\n  ".join(recipe))
    if comm.is_main_process():
        if not eval_only:  # a run that trains may be evaluated meanwhile
            _tidy(output_dir)
        name = "config_eval" if eval_only and (output_dir / "config.yaml").is_file() else "config"
        save_config(cfg, output_dir / f"{name}.yaml")
        lines = "\n".join(f"{key} = {value}" for key, value in flatten(_resolved(cfg)).items())
        write_text(output_dir / f"{name}_resolved.txt", lines + "\n")
    return output_dir


def _tidy(folder: Path) -> None:
    """Remove what a killed run was writing: nothing else trains here, and a checkpoint may be large."""
    for removed in remove_leftovers(folder):
        logger.info("removed %s, left by a run that was killed while it wrote", removed)


def _refuse_other_run(cfg: DictConfig, folder: Path) -> None:
    """Checkpoints of a run of another config file would be overwritten."""
    if not ((folder / "last_checkpoint").is_file() and (folder / "config.yaml").is_file()):
        return
    source = OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "source.file")
    mine = OmegaConf.select(cfg, "source.file")
    if source and mine and Path(source).absolute() not in (Path(mine).absolute(), (folder / "config.yaml").absolute()):
        raise ConfigError(
            f"train.output_dir={str(folder)!r} holds checkpoints of {source}, not of {mine}: "
            "give this run another train.output_dir, or remove that folder"
        )


def log_to(folder: Path) -> None:
    """Log to the terminal and to this folder, no longer to that of an earlier run or stage of the process."""
    setup_logger.cache_clear()
    for name in LOGGERS:
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
        setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name, abbrev_name=name[:2])


def _resolved(cfg: DictConfig) -> DictConfig:
    copy = cfg.copy()
    with contextlib.suppress(Exception):  # keys the engine fills in later stay as written
        OmegaConf.resolve(copy)
    return copy
