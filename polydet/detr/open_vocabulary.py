"""A DETR whose classes are words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from detectron2.modeling import META_ARCH_REGISTRY

from polydet.text import LabelSpace, TextEncoder, Vocabulary, VocabularyState

from .label_heads import WordLabels
from .meta_arch import DETR


@META_ARCH_REGISTRY.register()
class OpenDETR(VocabularyState, DETR):
    """Any `DETR` with a label head of words: trained on a label space, asked for anything.

    Args:
        label_space: the joint labels of the training datasets.
        labels: the head, e.g. `TextLabels`.
        text_encoder: encodes the labels, and words that are given to `set_vocabulary`; not part of a checkpoint.
        templates: prompts of the words.
        on_vocabulary_mismatch: see `VocabularyState`.
        base: further arguments of `DETR`.
    """

    def __init__(
        self,
        *,
        label_space: LabelSpace,
        labels: WordLabels,
        text_encoder: TextEncoder,
        templates: str | Sequence[str] = "photo",
        on_vocabulary_mismatch: Literal["error", "transfer"] = "error",
        dim: int = 256,
        **base: Any,
    ) -> None:
        vocabulary = Vocabulary.build(label_space.names, text_encoder, templates, unique=False)
        labels.start(vocabulary, dim)
        super().__init__(num_classes=len(vocabulary), labels=labels, dim=dim, **base)
        self.train_vocabulary = self.vocabulary = vocabulary
        self.label_space = label_space
        self.on_vocabulary_mismatch = on_vocabulary_mismatch
        self.keep_encoder(text_encoder)

    def classify_by(self, vocabulary: Vocabulary | None) -> None:
        """See `VocabularyState`."""
        self.words.use(vocabulary)

    @property
    def words(self) -> WordLabels:
        """The label head."""
        assert isinstance(self.class_heads, WordLabels)
        return self.class_heads

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract, see `DETR.forward`; training also reads what the label scope needs.

        Raises:
            RuntimeError: training under other words than those of the training.
        """
        if self.training and self.vocabulary is not self.train_vocabulary:
            raise RuntimeError("set_vocabulary() restricts this model; go back with set_vocabulary(None) to train it")
        return super().forward(batched_inputs)
