"""Any words on any images: batched, the words encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances

from detclipv2.meta_arch import DetCLIPv2
from polydet.model_zoo.predictor import Picture, Predictor


class WordPredictor(Predictor):
    """Detects words in images.

    Args:
        model: a trained model; it is put into eval mode.
        options: of `polydet.model_zoo.Predictor`. The test size is by default that of the model's config, and 800 x
            1333 for a model that was built without one.
    """

    fallback = (800, 1333)

    def __init__(self, model: DetCLIPv2, short: int | None = None, **options: Any) -> None:
        super().__init__(model, short, **options)
        self.words = model

    def __call__(self, images: Sequence[Picture], words: Sequence[str] | None = None) -> list[Instances]:
        """Detect words; the model's own vocabulary is back afterwards.

        Args:
            images: uint8 RGB arrays ``[H, W, 3]``, or files.
            words: what to look for; ``pred_classes`` index it. Words of the last call are not encoded again. None: the
                model's own.

        Returns:
            per image, on the CPU, in the image's own pixels.

        Raises:
            ValueError: no words.
            polydet.data.DatasetError: a file that cannot be read.
        """
        if words is None:
            return super().__call__(images)
        with self.words.looking_for(words):
            return super().__call__(images)
