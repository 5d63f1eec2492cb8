"""Which vocabulary a checkpoint was trained on: stored with the weights, compared when they are loaded."""

from typing import Any, Literal

import torch
from torch import Tensor

from polydet.text import Vocabulary

_SIZE = 256


class VocabularyMismatch(RuntimeError):
    """A checkpoint was trained on another vocabulary than the model's."""


class VocabularyState:
    """Mixin for an ``nn.Module``: a checkpoint carries the fingerprint of ``train_vocabulary``.

    Attributes:
        train_vocabulary: set by the model before weights are loaded.
        on_vocabulary_mismatch: ``error``, or ``transfer`` to take the weights for another set of names; the text
            encoder must be the same in either case, since the classifiers live in its space.
    """

    train_vocabulary: Vocabulary
    on_vocabulary_mismatch: Literal["error", "transfer"]

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
        stored, own = _unpack(state), _unpack(self.get_extra_state())
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
    data = text.encode()[:_SIZE].ljust(_SIZE)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpack(state: Tensor) -> str:
    return bytes(state.cpu().tolist()).decode(errors="replace").rstrip()
