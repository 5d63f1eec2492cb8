"""Open-vocabulary models: which words they speak, and which ones a checkpoint was trained on."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from polydet.text.encoders import TextEncoder
from polydet.text.vocabulary import Vocabulary

_SIZE = 256


class VocabularyMismatch(RuntimeError):
    """A checkpoint was trained on another vocabulary than the model's."""


class VocabularyState:
    """Mixin for an ``nn.Module``: a checkpoint carries the fingerprint of ``train_vocabulary``.

    Attributes:
        train_vocabulary: set by the model before weights are loaded.
        text_encoder: encodes the words given to ``set_vocabulary``; None for a model that takes vocabularies only.
            Set it with :meth:`keep_encoder`, so that an encoder that is a module stays out of the state dict.
        on_vocabulary_mismatch: ``error``, or ``transfer`` to take the weights for another set of names; the text
            encoder must be the same in either case, since the classifiers live in its space.
    """

    train_vocabulary: Vocabulary
    on_vocabulary_mismatch: Literal["error", "transfer"]
    text_encoder: TextEncoder | None

    def keep_encoder(self, encoder: TextEncoder | None) -> None:
        """Remember the encoder past ``nn.Module``'s registration."""
        self.__dict__["text_encoder"] = encoder

    def resolve_vocabulary(self, names_or_vocabulary: Sequence[str] | Vocabulary | None) -> Vocabulary:
        """The vocabulary that an argument of ``set_vocabulary`` means.

        Args:
            names_or_vocabulary: words, encoded with the training templates by ``text_encoder``; a vocabulary; or None
                for the training labels.

        Raises:
            ValueError: a vocabulary of another encoder, words for a model without ``text_encoder``, or one string.
        """
        if names_or_vocabulary is None:
            return self.train_vocabulary
        if isinstance(names_or_vocabulary, str):
            raise ValueError(f"set_vocabulary takes a list of names, not one string: [{names_or_vocabulary!r}]")
        if isinstance(names_or_vocabulary, Vocabulary):
            vocabulary = names_or_vocabulary
        elif self.text_encoder is None:
            raise ValueError("the model has no text_encoder: give set_vocabulary() a Vocabulary or build it with one")
        else:
            own = self.train_vocabulary
            vocabulary = Vocabulary.build(names_or_vocabulary, self.text_encoder, own.templates, known=own)
        if vocabulary.encoder_id != self.train_vocabulary.encoder_id:
            raise ValueError(
                f"the vocabulary comes from {vocabulary.encoder_id}, the model was built for "
                f"{self.train_vocabulary.encoder_id}: regions and texts would not meet"
            )
        return vocabulary

    def export_words(self, names: Sequence[str]) -> tuple[Vocabulary, dict[str, Any]]:
        """Words for a model file: those of the training, whatever ``names`` are."""
        return self.train_vocabulary, {}

    def get_extra_state(self) -> Tensor:
        """Fingerprint, number of names and encoder as utf-8 bytes, uint8 ``[256]`` (checkpointers keep tensors only,
        and drop those whose shape differs)."""
        return _pack(self.train_vocabulary)

    def set_extra_state(self, state: Any) -> None:
        """Compare with the model's vocabulary.

        Raises:
            VocabularyMismatch: another encoder, or other names or templates under ``error``.
        """
        if not isinstance(state, Tensor) or torch.equal(state.cpu(), self.get_extra_state()):
            return
        stored, own = unpack_text(state), unpack_text(self.get_extra_state())
        same_encoder = stored.split(" ")[-1] == own.split(" ")[-1]
        if same_encoder and self.on_vocabulary_mismatch == "transfer":
            return
        remedy = (
            "Build the model with the datasets, names and templates of the checkpoint, or set "
            "model.on_vocabulary_mismatch=transfer to train on from it with these names."
            if same_encoder
            else "The classifiers live in the space of the text encoder: build the model with the checkpoint's encoder."
        )
        raise VocabularyMismatch(
            f"the checkpoint was trained on another vocabulary.\n  checkpoint: {stored}\n  model:      {own}\n{remedy}"
        )


def _pack(vocabulary: Vocabulary) -> Tensor:
    text = f"{vocabulary.fingerprint} {len(vocabulary)} names {vocabulary.encoder_id.replace(' ', '_')}"
    return pack_text(text)


def pack_text(text: str) -> Tensor:
    """A text as extra state that every checkpointer keeps: utf-8, uint8 ``[256]``, cut or filled with blanks."""
    return torch.frombuffer(bytearray(text.encode()[:_SIZE].ljust(_SIZE)), dtype=torch.uint8)


def unpack_text(state: Tensor) -> str:
    """What :func:`pack_text` packed."""
    return bytes(state.cpu().tolist()).decode(errors="replace").rstrip()
