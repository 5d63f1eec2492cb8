"""Files and folders that appear whole or not at all, locks between processes, digests, and names that stay inside."""

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

__all__ = [
    "file_digest",
    "inside",
    "is_alive",
    "leftovers",
    "locked",
    "masked_digest",
    "remove_leftovers",
    "save_figure",
    "text_digest",
    "whole_file",
    "whole_folder",
    "write_bytes",
    "write_text",
]

_ENDING = r"\.(?P<process>\d+)(\.[0-9a-f]{8})?\.tmp"  # process and token
_MANY = 64  # files from which on the file system is flushed at once


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; after the block it is flushed to disk and renamed.

    Readers see the old file or the whole new one, also after a power cut.  The name ends in ``.tmp``: writers that go
    by the ending of a name (``numpy.savez``, ``savefig``) need the format said or an open file.  Missing folders are
    made.

    Raises:
        OSError: the block or the disk failed, naming ``path``; nothing is left behind and an old file is as it was.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path`` to fill; after the block it is flushed to disk and renamed.

    A folder that was there is moved aside first and removed last; who has mapped its files keeps them.

    Raises:
        OSError: the block or the disk failed, naming ``path``; nothing is left behind and an old folder is as it was.
    """
    path = Path(path)
    temporary, aside = _temporary(path), _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _flush_tree(temporary)
        if path.exists():
            os.rename(path, aside)
        os.rename(temporary, path)
        _flush(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; raises as :func:`whole_file`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data``, whole or not at all; raises as :func:`whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def save_figure(path: str | os.PathLike[str], figure: Any, **options: Any) -> None:
    """Write a matplotlib figure as PNG, whole or not at all; raises as :func:`whole_file`.

    Args:
        options: of matplotlib's ``savefig``.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", **options)


def leftovers(folder: str | os.PathLike[str], of: str = "") -> list[Path]:
    """What writers that were killed left under temporary names, sorted; writers at work have such, too.

    Args:
        folder: where to look, not below.
        of: only what was to become the file or folder of this name.
    """
    name = re.compile(rf"\.{re.escape(of) or '.+'}{_ENDING}")
    return sorted(path for path in Path(folder).glob(".*.tmp") if name.fullmatch(path.name))


def remove_leftovers(folder: str | os.PathLike[str], of: str = "") -> list[Path]:
    """Remove :func:`leftovers` whose writer is gone, and return them; for who is writing nothing there itself."""
    found = [path for path in leftovers(folder, of) if not is_alive(_writer(path))]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def is_alive(process: int) -> bool:
    """Whether another process of this machine has this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: float | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, which no other process (or thread) holds meanwhile; it is gone afterwards.

    A process that dies, however it does, gives its lock back.

    Args:
        path: of the lock, not of what it guards; folders are made.
        wait: seconds to wait for another holder; None waits as long as it takes, 0 not at all.

    Raises:
        TimeoutError: another process still holds it.
        OSError: the folder cannot have one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait is None else wait, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(f"{path} is held by another process") from error
    except RuntimeError as error:
        raise OSError(f"{path} cannot be locked: {error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # who waits finds that its file has no name any more and opens the next
        lock.release()


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; read once a process while size and time stay the same."""
    status = os.stat(path)
    return _digest_of(os.path.realpath(path), status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of(path: str, size: int, time: int) -> str:
    del size, time
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def masked_digest(path: str | os.PathLike[str], start: int) -> str:
    """SHA-256 of a file that carries its own digest: the 64 bytes from ``start`` on are taken as zeros (``"0"``)."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        left = start
        while left and (block := file.read(min(left, 1 << 24))):
            digest.update(block)
            left -= len(block)
        file.read(64)
        digest.update(b"0" * 64)
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """``folder / name``, for names that come from a file: they cannot lead out of the folder.

    Links in the folder are followed, they are its owner's.

    Raises:
        ValueError: the name is empty or absolute, or has ``..``, a backslash, a colon or a NUL in it.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(char in name for char in "\\:\0"):
        raise ValueError(f"{name!r} is not the name of something inside {folder}")
    return Path(folder, *parts)


def _writer(path: Path) -> int:
    match = re.search(_ENDING, path.name)
    return int(match["process"]) if match else 0


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems have no flush of folders
            raise
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    """Everything below: one by one, or thousands of pictures at once, which takes a fiftieth of the time."""
    entries = [folder, *folder.rglob("*")]
    if len(entries) > _MANY and _flush_file_system(folder):
        return
    for path in entries:
        if not path.is_symlink():
            _flush(path)


def _flush_file_system(folder: Path) -> bool:
    """Linux's ``syncfs``, which Python does not have (``os.sync`` waits for every other mount, too)."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(handle)
    return True


def _cannot_write(path: Path, error: Exception) -> OSError:
    return OSError(f"cannot write {path}: {error}; free some space, or write to another folder")
