"""What ``--resume`` goes on from: checked first, said in the log, the same to the bit."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from polydet.engine.checkpoint import Checkpointer
from polydet.engine.config import ConfigError, flatten
from polydet.engine.distributed import on_main
from polydet.engine.errors import RunError
from polydet.engine.folder import CHECKPOINT, move_aside
from polydet.engine.running import RunningAverages
from polydet.engine.stopping import EXIT_CODE
from polydet.engine.trainer import Trainer
from polydet.engine.trust import plain_config, read_yaml_config
from polydet.files import whole_file, write_text
from polydet.weight_files import CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

_LENGTH = ("train.max_epochs", "train.max_iter", "dataloader.train.total_batch_size")
_OF_THE_END = ("DONE", "model.safetensors", "results.json", "results.txt", "run.json", "curves.png", "predictions.png")
_SHOWN = 12  # keys


def saved_config(folder: Path) -> DictConfig | None:
    """The config that the run in ``folder`` was last trained with; None where it cannot be read."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        return read_yaml_config(path)
    except (ConfigError, OSError) as error:
        logger.warning("the config of the run in %s cannot be compared with this one: %s", folder, error)
        return None


def is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether the run in ``folder`` has ended, and ``cfg`` asks for no other length of it."""
    if not (folder / "DONE").is_file():
        return False
    saved = saved_config(folder)
    return saved is None or _length(saved) == _length(cfg)


def _length(cfg: DictConfig) -> list[Any]:
    epochs, steps, batch = (OmegaConf.select(cfg, key) for key in _LENGTH)
    return [epochs, None, batch] if epochs else [0, steps, None]


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that ``last_checkpoint`` names, else the newest whole one; None in a folder without any.

    Called by every process; the main one chooses.

    Raises:
        CheckpointError: none of those that are there is whole.
    """
    held: list[dict[str, Any]] = []  # what the main process has read need not be read again, nor sent
    path = on_main(_choose, folder, held)
    if path is None:
        return None
    return path, held[0] if held else read_checkpoint(path)


def _choose(folder: Path, held: list[dict[str, Any]]) -> Path | None:
    tag = folder / "last_checkpoint"
    notes, candidates = [], []
    if tag.is_file():
        name = tag.read_bytes().decode("utf-8", "replace").strip()
        if CHECKPOINT.fullmatch(name):
            candidates.append(folder / name)
        else:
            notes.append(f"{tag} names no checkpoint ({name[:80]!r})")
    there = [path for path in folder.glob("model_*.pth") if CHECKPOINT.fullmatch(path.name) and path not in candidates]
    if not tag.is_file() and there:
        notes.append(f"{tag} is not there")
    candidates += sorted(there, key=lambda path: path.name, reverse=True)  # "final" is after the numbers
    for path in candidates:
        try:
            data = read_checkpoint(path)
        except CheckpointError as error:
            notes.append(str(error))
            continue
        if not isinstance(data.get("trainer"), Mapping):
            notes.append(f"{path} holds weights without the state of a training")
            continue
        if notes:
            logger.warning("resuming from %s, since %s", path, "; ".join(notes))
        held.append(data)
        return path
    if notes:
        raise CheckpointError(
            f"no checkpoint in {folder} can be resumed from: {'; '.join(notes)}. Copy a whole one there and name it in "
            "last_checkpoint, or start anew without --resume"
        )
    return None


def restore(checkpointer: Checkpointer, trainer: Trainer, path: Path, data: dict[str, Any]) -> None:
    """Load a checkpoint of :func:`find_checkpoint` into the model and the trainer.

    Raises:
        CheckpointError: it is of another model, or of a training with other parts.
    """
    checkpointer.take(data)
    try:
        trainer.load_state_dict(data["trainer"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} does not fit the training that this config describes ({type(error).__name__}: {error}); --resume "
            "goes on with the same one, train.init_checkpoint starts a new one from its weights"
        ) from error
    logger.info("resumed from %s", path)


def check_span(folder: Path, start_iter: int, max_iter: int) -> None:
    """A run that has trained longer than it is now asked to has nothing to go on with.

    Raises:
        RunError: see above.
    """
    if start_iter > max_iter or ((folder / "DONE").is_file() and start_iter == max_iter):
        raise RunError(
            f"the run in {folder} has trained {start_iter} steps and the config asks for {max_iter}: ask for more with "
            "train.max_iter or train.max_epochs, or start anew without --resume"
        )


def say_differences(cfg: DictConfig, folder: Path) -> None:
    """Log what the config changes of the one that the run was started with; it counts from here on."""
    saved = saved_config(folder)
    if saved is None:
        return
    before, now = (_leaves(c) for c in (saved, OmegaConf.create(plain_config(cfg), flags={"allow_objects": True})))
    lines = [
        f"{key}: {before.get(key, 'not there')} -> {now.get(key, 'not there')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if lines:
        more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        logger.warning("the run goes on under another config than it had:\n  %s%s", "\n  ".join(lines[:_SHOWN]), more)


def _leaves(cfg: DictConfig) -> dict[str, str]:
    own = {key: str(value) for key, value in flatten(cfg).items() if not key.startswith("source.")}
    own.pop("train.output_dir", None)  # a folder may be moved
    return own


def reopen(folder: Path, path: Path, start_iter: int) -> None:
    """Let a folder that goes on training no longer answer for the end that it had; on the main process.

    Args:
        path: the checkpoint that is gone on from; a final one becomes that of its step.
    """
    final = folder / "model_final.pth"
    ended = [name for name in _OF_THE_END if (folder / name).exists()] if (folder / "DONE").exists() else []
    if final.exists() and path != final:
        ended.append(final.name)
    if ended:
        logger.info("the run goes on; what belonged to its end is in %s", move_aside(folder, ended))
    if path == final:
        name = f"model_{start_iter - 1:07d}.pth"
        final.replace(folder / name)
        write_text(folder / "last_checkpoint", name)


def complete(folder: Path, path: Path) -> None:
    """Give a run that was killed between its last checkpoint and its final one the latter; on the main process."""
    final = folder / "model_final.pth"
    if path != final:
        with whole_file(final) as temporary:
            shutil.copyfile(path, temporary)
        write_text(folder / "last_checkpoint", final.name)


def save_and_leave(trainer: Trainer, checkpointer: Checkpointer) -> None:
    """The checkpoint of a run that a signal ends, called by every process; the step's own, where that is there."""
    for hook in trainer._hooks:
        if isinstance(hook, RunningAverages):
            hook.gather()
    ended = trainer.iter + 1 >= trainer.max_iter
    name = f"model_{trainer.iter:07d}"
    if not (ended and not trainer.unfinished):
        checkpointer.save(name, iteration=trainer.iter)
    if comm.is_main_process():
        step = "the last step" if ended else f"step {trainer.iter}"
        logger.warning("a signal ends the run, saved after %s; exit code %d, go on with --resume", step, EXIT_CODE)
