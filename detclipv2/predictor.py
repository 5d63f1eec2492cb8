"""Any words on any images: batched, the words encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances

from detclipv2.meta_arch import DetCLIPv2
from polydet.data import read_image
from polydet.evaluation import answer_by_size

Picture = np.ndarray | str | Path


class WordPredictor:
    """Detects words in images.

    Args:
        model: a trained model; it is put into eval mode.
        short, longest: test size in pixels, see Detectron2's ``ResizeShortestEdge``; ``short=0`` leaves images as
            they are.
        batch_size: images prepared together; those of one size share a forward pass.
        min_score: detections below it are dropped.
    """

    def __init__(
        self, model: DetCLIPv2, short: int = 800, longest: int = 1333, batch_size: int = 4, min_score: float = 0.0
    ) -> None:
        self.model = model.eval()
        self.resize = T.ResizeShortestEdge(short, longest) if short else T.NoOpTransform()
        self.batch_size, self.min_score = batch_size, min_score

    @torch.no_grad()
    def __call__(self, images: Sequence[Picture], words: Sequence[str]) -> list[Instances]:
        """Detect words; the model's own vocabulary is back afterwards.

        Args:
            images: uint8 RGB arrays ``[H, W, 3]``, or files.
            words: what to look for; ``pred_classes`` index it. Words of the last call are not encoded again.

        Returns:
            per image, on the CPU, in the image's own pixels.

        Raises:
            ValueError: no words.
            polydet.data.DatasetError: a file that cannot be read.
        """
        found: list[Instances] = []
        with self.model.looking_for(words):
            for start in range(0, len(images), self.batch_size):
                batch = [self.prepare(image) for image in images[start : start + self.batch_size]]
                found += [output["instances"].to("cpu") for output in answer_by_size(self.model, batch)]
        return [instances[instances.scores >= self.min_score] for instances in found]

    def prepare(self, image: Picture) -> dict[str, Any]:
        """Model input of an image."""
        if not isinstance(image, np.ndarray):
            image = read_image({"file_name": str(image)})
        given = T.AugInput(image)
        T.AugmentationList([self.resize])(given)
        pixels = np.ascontiguousarray(given.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": image.shape[0], "width": image.shape[1]}
