"""Text embeddings on disk, one safetensors file a fingerprint."""

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``$POLYDET_CACHE/text``, else ``~/.cache/polydet/text``."""
    return Path(os.environ.get("POLYDET_CACHE", Path.home() / ".cache" / "polydet")) / "text"


def embeddings_of(cache_dir: Path, fingerprint: str, shape: tuple[int, int], encode: Callable[[], Tensor]) -> Tensor:
    """Embeddings ``[n, D]`` from the cache, else from `encode`, whose result is kept.

    Thousands of names under eighty templates take long: processes that share the folder encode once, the others wait.
    """
    embeddings = load_embeddings(cache_dir, fingerprint, shape)
    if embeddings is not None:
        return embeddings
    with _locked(cache_dir, fingerprint):
        embeddings = load_embeddings(cache_dir, fingerprint, shape)  # another process may have been faster
        if embeddings is None:
            embeddings = encode()
            try:
                save_embeddings(cache_dir, fingerprint, embeddings)
            except OSError as error:
                logger.warning("text embeddings are not cached in %s: %s", cache_dir, error)
    return embeddings


@contextlib.contextmanager
def _locked(cache_dir: Path, fingerprint: str) -> Iterator[None]:
    """Without a lock where the folder cannot have one: then every process encodes for itself."""
    path = cache_dir / f".{fingerprint}.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(path.open("a"))
            stack.callback(path.unlink, missing_ok=True)  # who waits holds the file itself and looks again
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def load_embeddings(cache_dir: Path, fingerprint: str, shape: tuple[int, int]) -> Tensor | None:
    """Cached embeddings ``[n, D]`` or None.  A damaged or misshapen file counts as absent (it is written again)."""
    path = cache_dir / f"{fingerprint}.safetensors"
    if not path.is_file():
        return None
    try:
        embeddings = load_file(path)["embeddings"]
    except (SafetensorError, KeyError, OSError):
        return None
    return embeddings if tuple(embeddings.shape) == shape and bool(torch.isfinite(embeddings).all()) else None


def save_embeddings(cache_dir: Path, fingerprint: str, embeddings: Tensor) -> None:
    """Write under a temporary name, then rename: another process never reads half a file."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=cache_dir, suffix=".tmp")
    os.close(handle)
    try:
        save_file({"embeddings": embeddings.contiguous()}, temporary)
        os.replace(temporary, cache_dir / f"{fingerprint}.safetensors")
    finally:
        Path(temporary).unlink(missing_ok=True)
