"""Text embeddings on disk, one safetensors file a fingerprint."""

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def default_cache_dir() -> Path:
    """``$POLYDET_CACHE/text``, else ``~/.cache/polydet/text``."""
    return Path(os.environ.get("POLYDET_CACHE", Path.home() / ".cache" / "polydet")) / "text"


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
