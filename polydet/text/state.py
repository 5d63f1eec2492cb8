"""Open-vocabulary models: which words they speak, and which ones a checkpoint was trained on."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from polydet.text.encoders import TextEncoder
from polydet.text.templates import clean_name
from polydet.text.vocabulary import Vocabulary, check_names

_SIZE = 256


class VocabularyMismatch(RuntimeError):
    """A checkpoint was trained on another vocabulary than the model's."""


class OpenVocabulary:
    """Mixin of every model whose classes are words: what `set_vocabulary` takes and refuses.

    The model says in `words_space` whose embeddings it compares regions with, and in `use_words` what it does with
    words.
    """

    @property
    def words_space(self) -> str:
        """``TextEncoder.id`` that a vocabulary must come from."""
        raise TypeError(f"{type(self).__name__} must define words_space")

    def use_words(self, words: Vocabulary | tuple[str, ...] | None) -> None:
        """Predict these words from now on; None: those of the training."""
        raise TypeError(f"{type(self).__name__} must define use_words(words)")

    def set_vocabulary(self, names_or_vocabulary: Sequence[str] | Vocabulary | None) -> None:
        """Predict other classes from now on; None goes back to those of the training.

        Args:
            names_or_vocabulary: words, or a vocabulary of the model's text encoder. Words that were trained need no
                encoder; others are encoded as those of the training were.

        Raises:
            ValueError: no words, an empty one, a vocabulary of another encoder, new words for a model without a text
                encoder, or one string.
        """
        words = names_or_vocabulary
        if isinstance(words, str):
            raise ValueError(f"set_vocabulary takes a list of names, not one string: [{words!r}]")
        if isinstance(words, Vocabulary) and words.encoder_id != self.words_space:
            raise ValueError(
                f"the vocabulary comes from {words.encoder_id}, not from {self.words_space} that the model was built "
                "for: regions and texts would not meet"
            )
        if words is None or isinstance(words, Vocabulary):
            self.use_words(words)
            return
        check_names(tuple(words), unique=False)
        self.use_words(tuple(words))


class VocabularyState(OpenVocabulary):
    """An open vocabulary over fixed embeddings: checkpoints carry the fingerprint of ``train_vocabulary``.

    The model says in ``classify_by`` what it does with other embeddings.

    Attributes:
        train_vocabulary: set by the model before weights are loaded.
        vocabulary: the words it predicts now.
        text_encoder: encodes the words given to ``set_vocabulary``; None for a model that takes vocabularies only.
            Set it with :meth:`keep_encoder`, so that an encoder that is a module stays out of the state dict.
        on_vocabulary_mismatch: ``error``, or ``transfer`` to take the weights for another set of names; the text
            encoder must be the same in either case, since the classifiers live in its space.
    """

    train_vocabulary: Vocabulary
    vocabulary: Vocabulary
    on_vocabulary_mismatch: Literal["error", "transfer"]
    text_encoder: TextEncoder | None

    def keep_encoder(self, encoder: TextEncoder | None) -> None:
        """Remember the encoder past ``nn.Module``'s registration."""
        self.__dict__["text_encoder"] = encoder

    @property
    def words_space(self) -> str:
        """See :class:`OpenVocabulary`."""
        return self.train_vocabulary.encoder_id

    def classify_by(self, vocabulary: Vocabulary | None) -> None:
        """Classify by these embeddings from now on; None: by those of the training."""
        raise TypeError(f"{type(self).__name__} must define classify_by(vocabulary)")

    @staticmethod
    def word_key(name: str) -> str:
        """What two spellings of one word have in common."""
        return clean_name(name)

    def use_words(self, words: Vocabulary | tuple[str, ...] | None) -> None:
        """See :class:`OpenVocabulary`. Raises ValueError also for a word given twice."""
        own = self.train_vocabulary
        if words is None:
            vocabulary = own
        elif isinstance(words, Vocabulary):
            vocabulary = words
        elif (known := own.known(words, self.word_key)) is not None:
            vocabulary = known
        elif self.text_encoder is None:
            raise ValueError("the model has no text_encoder: give set_vocabulary() a Vocabulary or build it with one")
        else:
            vocabulary = Vocabulary.build(words, self.text_encoder, own.templates, known=own)
        self.classify_by(None if words is None else vocabulary)
        self.vocabulary = vocabulary

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
