"""Labels and words out of a model file: no card, no data and no text encoder is needed for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polydet.model_file import THIS_FILE, ModelFileError, read_embeddings, read_header
from polydet.text.encoders import TextEncoder
from polydet.text.label_space import LabelSpace
from polydet.text.vocabulary import Vocabulary


def stored_label_space(file: str) -> LabelSpace:
    """The joint labels that the model in a file was trained on.

    Raises:
        ModelFileError: the file has none.
    """
    labels = read_header(file).get("labels")
    if not isinstance(labels, Mapping):
        raise ModelFileError(f"model file {file!r} names no labels")
    return LabelSpace({str(dataset): list(names) for dataset, names in labels["datasets"]}, labels["merge"])


class StoredEncoder:
    """A ``TextEncoder`` that knows the words of a model file, and asks the real one for any other.

    Args:
        file: model file with embeddings of its words.
        encoder: the encoder that made them; nothing of it is loaded before it is asked.

    Attributes:
        vocabulary: the words of the file; ``Vocabulary.build`` takes their rows as they are.

    Raises:
        ModelFileError: the file has no words.
    """

    def __init__(self, file: str, encoder: TextEncoder | None = None) -> None:
        words = read_header(file).get("words")
        if not isinstance(words, Mapping):
            raise ModelFileError(f"model file {file!r} has no words")
        self.file, self.encoder = file, encoder
        rows = read_embeddings(file)
        names = tuple(map(str, words["names"]))
        self.vocabulary = Vocabulary(names, tuple(words["templates"]), str(words["encoder"]), rows)
        self._rows = dict(zip(words.get("sentences") or (), rows))

    @property
    def id(self) -> str:
        """See ``TextEncoder.id``: that of the encoder whose embeddings these are."""
        return self.vocabulary.encoder_id

    @property
    def dim(self) -> int:
        """See ``TextEncoder.dim``."""
        return self.vocabulary.dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See ``TextEncoder.encode``.

        Raises:
            RuntimeError: a text that the file does not know, where its encoder is not at hand or is another one.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            self._rows.update(zip(new, self._ask(new)))
        return torch.stack([self._rows[text] for text in texts]) if texts else torch.zeros(0, self.dim)

    def _ask(self, texts: list[str]) -> Tensor:
        known = f"{self.file} knows {len(self.vocabulary)} words ({', '.join(self.vocabulary.names[:5])} ...)"
        lead = f"{known}, and {texts[0]!r} is not one of them: a new word needs the text encoder {self.id}"
        if self.encoder is None:
            raise RuntimeError(lead)
        try:
            found = self.encoder.id
            rows = self.encoder.encode(texts) if found == self.id else None
        except (RuntimeError, ImportError, OSError) as error:
            raise RuntimeError(f"{lead}, which is not at hand: {error}") from error
        if rows is None:
            raise RuntimeError(f"{lead}, and the one at hand is {found}")
        return rows

    def portable(self, node: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The config of this encoder in another model file; see `polydet.engine.portable`."""
        return {**node, "file": THIS_FILE}
