"""Many pictures at once, prepared as the model's own test prepares them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from polydet.data import DatasetError, read_image, to_picture
from polydet.evaluation import answer_by_size

Picture = np.ndarray | Image.Image | str | Path


class Predictor:
    """Detects in arrays and files: resized as in the model's test, in batches, each answered as it would be alone.

    Detectron2's ``DefaultPredictor`` takes one BGR array at a time; this one takes RGB arrays and files, many at once.

    Args:
        model: of :func:`polydet.model_zoo.get`; it is put into eval mode.
        short, longest: test size in pixels, see Detectron2's ``ResizeShortestEdge``; ``short=0`` leaves images as they
            are.  None: what the model's config says.
        batch_size: images prepared together; those of one size share a forward pass.
        min_score: detections below it are dropped.

    Raises:
        ValueError: no test size is given, and the model is not one of :func:`polydet.model_zoo.get`.
    """

    fallback: ClassVar[tuple[int, int] | None] = None  # size of a model that comes without its config

    def __init__(
        self,
        model: nn.Module,
        short: int | None = None,
        longest: int = 1333,
        batch_size: int = 4,
        min_score: float = 0.0,
    ) -> None:
        self.model = model.eval()
        self.batch_size, self.min_score = batch_size, min_score
        origin = getattr(model, "origin", None)
        self.format = (origin[0].model.get("input_format") or "RGB") if origin else "RGB"
        if short is None and origin is None:
            if self.fallback is None:
                raise ValueError("the model comes without its config: give Predictor its test size, short=800 say")
            short, longest = self.fallback
        if short is None:
            assert origin is not None
            made: Any = instantiate(origin[0].dataloader.test.mapper.get("augmentations", []))
            self.resize = T.AugmentationList([made] if isinstance(made, T.Augmentation) else list(made))
        else:
            self.resize = T.AugmentationList([T.ResizeShortestEdge(short, longest)] if short else [])

    @torch.no_grad()
    def __call__(self, images: Sequence[Picture]) -> list[Instances]:
        """Detect.

        Args:
            images: a list of RGB arrays ``[H, W, 3]``, Pillow images or files; other shapes and types of samples as
                :func:`polydet.data.to_picture` takes them.

        Returns:
            per image, on the CPU, in the image's own pixels.

        Raises:
            polydet.data.DatasetError: a file that cannot be read, or what is no picture; names its place.
        """
        if isinstance(images, Picture):
            raise DatasetError("a predictor takes a list of images", remedy="give one image as [image]")
        found: list[Instances] = []
        for start in range(0, len(images), self.batch_size):
            chosen = images[start : start + self.batch_size]
            batch = [self.prepare(image, f"images[{i}]") for i, image in enumerate(chosen, start)]
            found += [output["instances"].to("cpu") for output in answer_by_size(self.model, batch)]
        return [instances[instances.scores >= self.min_score] for instances in found]

    def prepare(self, image: Picture, name: str = "image") -> dict[str, Any]:
        """Model input of an image, which messages call ``name``."""
        image = read_image({"file_name": str(image)}) if isinstance(image, str | Path) else to_picture(image, name)
        given = T.AugInput(image)
        self.resize(given)
        pixels = given.image[:, :, ::-1] if self.format == "BGR" else given.image
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
