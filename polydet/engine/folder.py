"""Who a run's folder belongs to: one run at a time, whose files are the only ones of a run in it."""

import contextlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.utils import comm
from omegaconf import DictConfig

from polydet.engine.distributed import on_main
from polydet.engine.errors import RunError
from polydet.files import is_alive, locked, write_text

logger = logging.getLogger(__name__)

LOCK, OWNER, PREVIOUS = ".lock", ".owner.json", "previous"
CHECKPOINT = re.compile(r"model_(?P<step>\d{7}|final)\.pth")
# what answers for a run goes first, so that half a move leaves no folder that looks finished
_ANSWERS = ("DONE", "last_checkpoint", "model.safetensors", "model_final.pth", "results.json")
_SETTINGS = re.compile(r"config(_eval)?(\.yaml|_resolved\.txt)|log\.txt(\.rank\d+)?")
_OURS = re.compile(
    rf"{'|'.join(re.escape(name) for name in _ANSWERS)}|model_(best|\d{{7}})\.pth|metrics\.json|results\.txt|"
    rf"run(_eval)?\.json|(curves|predictions)\.png|events\.out\.tfevents\..+|inference|nonfinite|{_SETTINGS.pattern}"
)
_WAIT = 10.0  # seconds for the workers of a killed process, which may hold its lock until they notice


def open_folder(cfg: DictConfig) -> Path:
    """``train.output_dir``, made and tried for writing; called by every process.

    Raises:
        OSError: nothing can be written there.
    """
    folder = Path(cfg.train.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_test_{comm.get_rank()}"
        probe.write_text("ok")
        probe.unlink()
    except OSError as error:
        raise OSError(f"train.output_dir={str(folder)!r} cannot be written: {error}") from error
    return folder


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Inside the block no other run trains in ``folder``; the main process holds the lock, all are told.

    A file system without locks costs a warning.

    Raises:
        RunError: another run is there, naming its process and machine.
    """
    with contextlib.ExitStack() as stack:
        on_main(_take, stack, folder)
        yield


def _take(stack: contextlib.ExitStack, folder: Path) -> None:
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            stack.enter_context(locked(folder / LOCK, wait=0))
        except TimeoutError as error:
            holder, gone = _holder(folder)
            if not gone or time.monotonic() > deadline:
                raise RunError(
                    f"train.output_dir={str(folder)!r} is in use by {holder}: wait until that run has ended or stop "
                    "it, or give this one another train.output_dir"
                ) from error
            time.sleep(0.2)
        except OSError as error:
            logger.warning("nothing keeps a second run out of %s: the folder takes no lock (%s)", folder, error)
            return
        else:
            break
    owner = {"process": os.getpid(), "machine": platform.node()}
    write_text(folder / OWNER, json.dumps(owner))
    stack.callback((folder / OWNER).unlink, missing_ok=True)


def _holder(folder: Path) -> tuple[str, bool]:
    """(who holds the lock, whether that process of this machine is gone)."""
    try:
        owner = json.loads((folder / OWNER).read_text())
        process, machine = int(owner["process"]), str(owner["machine"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another run", False
    here = machine == platform.node()
    return f"process {process} on {machine}", here and process != os.getpid() and not is_alive(process)


def move_aside(folder: Path, names: Sequence[str] = ()) -> Path | None:
    """Move the files of an earlier run in ``folder`` to ``previous/NNN`` below it; files that no run writes stay.

    Args:
        names: only these; by default all, where more is there than the settings and log of a run that never began.

    Returns:
        where they went; None when there was nothing to move.
    """
    ours = [p for p in folder.iterdir() if (p.name in names if names else _OURS.fullmatch(p.name))]
    if not ours or (not names and all(_SETTINGS.fullmatch(path.name) for path in ours)):
        return None
    kept = folder / PREVIOUS
    number = max((int(p.name) for p in kept.glob("[0-9][0-9][0-9]")), default=0) + 1
    target = kept / f"{number:03d}"
    target.mkdir(parents=True)
    rank = {name: place for place, name in enumerate(_ANSWERS)}
    for path in sorted(ours, key=lambda p: (rank.get(p.name, len(rank)), p.name)):
        os.rename(path, target / path.name)
    return target


def after_move(folder: Path, target: Path, file: str) -> str:
    """The name of ``file`` after its folder's files went to ``target``."""
    path = Path(file)
    moved = target / path.name
    return str(moved) if file and path.parent.resolve() == folder.resolve() and moved.exists() else file
