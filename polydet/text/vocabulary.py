"""A vocabulary: names, prompt templates and the encoder that turned them into embeddings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from polydet.files import text_digest
from polydet.text.cache import default_cache_dir, embeddings_of
from polydet.text.encoders import TextEncoder
from polydet.text.templates import clean_name, resolve_templates


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Class names and their text embeddings.

    Attributes:
        names: n names as the card writes them.
        templates: prompt templates that were averaged for every name.
        encoder_id: ``TextEncoder.id``.
        embeddings: ``[n, D]`` float32, unit rows.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    encoder_id: str
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return int(self.embeddings.shape[1])

    @property
    def fingerprint(self) -> str:
        """32 hex digits of encoder, templates and names: equal fingerprints mean equal embeddings."""
        return vocabulary_fingerprint(self.encoder_id, self.templates, self.names)

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        encoder: TextEncoder,
        templates: str | Sequence[str] = "a",
        cache_dir: str | Path | None = None,
        unique: bool = True,
        known: "Vocabulary | None" = None,
    ) -> "Vocabulary":
        """Encode ``names``: each template's embedding is normalised, averaged and normalised again (CLIP's ensemble).

        Args:
            names: class names; underscores become spaces in the prompt.
            encoder: any ``TextEncoder``.
            templates: a key of ``TEMPLATES``, a template, or several.
            cache_dir: where embeddings are kept by fingerprint; default ``default_cache_dir()``.
            unique: refuse repeated names; False for the joint labels of several datasets, which may share names.
            known: a vocabulary of the same encoder and templates, whose names are not encoded again; by default the one
                that a `StoredEncoder` brings.

        Raises:
            ValueError: no names, an empty name, or a name given twice.
        """
        names, templates = tuple(names), resolve_templates(templates)
        check_names(names, unique)
        fingerprint = vocabulary_fingerprint(encoder.id, templates, names)
        directory = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        rows: dict[str, Tensor] = {}
        known = known or getattr(encoder, "vocabulary", None)
        if known is not None and (known.encoder_id, known.templates) == (encoder.id, templates):
            rows = dict(zip(map(clean_name, known.names), known.embeddings.cpu()))
        if rows.keys() >= set(map(clean_name, names)):
            embeddings = _encode(names, encoder, templates, rows)
        else:
            embeddings = embeddings_of(
                directory, fingerprint, (len(names), encoder.dim), lambda: _encode(names, encoder, templates, rows)
            )
        return cls(names, templates, encoder.id, embeddings)

    def known(self, names: Sequence[str], key: Callable[[str], str] = clean_name) -> "Vocabulary | None":
        """These names with the rows they have here, where all are here; otherwise None.

        Args:
            names: as they are to be called.
            key: what two spellings of one word have in common.

        Raises:
            ValueError: as in ``build``.
        """
        check_names(tuple(names), unique=True)
        row = {key(name): index for index, name in reversed(list(enumerate(self.names)))}
        rows = [row.get(key(name)) for name in names]
        if None in rows:
            return None
        found = torch.tensor(rows, dtype=torch.long, device="cpu")
        return Vocabulary(tuple(names), self.templates, self.encoder_id, self.embeddings[found])

    def select(self, indices: Sequence[int]) -> "Vocabulary":
        """The vocabulary of the names at ``indices``, in that order."""
        rows = torch.as_tensor(list(indices), dtype=torch.long, device="cpu")
        return Vocabulary(tuple(self.names[i] for i in rows), self.templates, self.encoder_id, self.embeddings[rows])


def vocabulary_fingerprint(encoder_id: str, templates: Sequence[str], names: Sequence[str]) -> str:
    """32 hex digits of a SHA-256 over encoder, templates and names, order included."""
    text = json.dumps([encoder_id, list(templates), list(names)], ensure_ascii=False)
    return text_digest(text)[:32]


def check_names(names: tuple[str, ...], unique: bool) -> None:
    """Raises ValueError for no names, an empty one, or, where they are to be `unique`, one given twice."""
    if not names:
        raise ValueError("a vocabulary needs at least one name")
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not clean_name(name):
            raise ValueError(f"name {index} of the vocabulary is empty")
        if unique and name in seen:
            raise ValueError(f"{name!r} is given twice in the vocabulary (positions {seen[name]} and {index})")
        seen[name] = index


def _encode(
    names: tuple[str, ...], encoder: TextEncoder, templates: tuple[str, ...], known: Mapping[str, Tensor]
) -> Tensor:
    """Unit rows ``[n, D]``; `known` are those of clean names that need no encoding."""
    rows = dict(known)
    words = [word for word in dict.fromkeys(map(clean_name, names)) if word not in rows]
    if words:
        total = torch.zeros(len(words), encoder.dim, device="cpu")  # whatever the default device
        for template in templates:
            total += encoder.encode([template.format(word) for word in words])
        rows.update(zip(words, F.normalize(total, dim=-1)))
    embeddings = torch.stack([rows[clean_name(name)] for name in names])
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError(f"encoder {encoder.id} gave non-finite embeddings")
    return embeddings
