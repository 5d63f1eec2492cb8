"""Text embeddings on disk, one safetensors file a fingerprint."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polydet.files import locked, whole_file

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
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot have a lock: every process encodes for itself
            stack.enter_context(locked(cache_dir / f".{fingerprint}.lock"))
        embeddings = load_embeddings(cache_dir, fingerprint, shape)  # another process may have been faster
        if embeddings is None:
            embeddings = encode()
            try:
                save_embeddings(cache_dir, fingerprint, embeddings)
            except OSError as error:
                logger.warning("text embeddings are not cached in %s: %s", cache_dir, error)
    return embeddings


def load_embeddings(cache_dir: Path, fingerprint: str, shape: tuple[int, int]) -> Tensor | None:
    """Cached embeddings ``[n, D]`` or None.  A damaged or misshapen file is named and counts as absent."""
    path = cache_dir / f"{fingerprint}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            digest, embeddings = (file.metadata() or {}).get("digest"), file.get_tensor("embeddings")
    except (SafetensorError, KeyError, OSError) as error:
        logger.warning("%s cannot be read (%s): the names are encoded again", path, error)
        return None
    if tuple(embeddings.shape) == shape and digest == _digest(embeddings):
        return embeddings
    logger.warning("%s is not as it was written: the names are encoded again", path)
    return None


def save_embeddings(cache_dir: Path, fingerprint: str, embeddings: Tensor) -> None:
    """Keep embeddings; another process never reads half a file."""
    embeddings = embeddings.contiguous()
    with whole_file(cache_dir / f"{fingerprint}.safetensors") as temporary:
        save_file({"embeddings": embeddings}, temporary, {"digest": _digest(embeddings)})


def _digest(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.cpu().numpy().tobytes()).hexdigest()
