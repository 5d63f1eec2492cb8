"""Figure 4: what a detector finds on one image under different words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib.figure import Figure

from polydet.engine.pictures import with_labels_inside
from polydet.files import save_figure

from .meta_arch import METR


def language_panel(
    model: METR, inputs: Sequence[dict[str, Any]], vocabularies: Sequence[Sequence[str]], threshold: float = 0.3
) -> Figure:
    """A row an image, a column a list of words, with the detections above `threshold`.

    Args:
        model: its vocabulary and mode are as before afterwards.
        inputs: model inputs; pictures are drawn on `image`.
        vocabularies: word lists; each word keeps its colour from column to column.
    """
    words = list(dict.fromkeys(word for words in vocabularies for word in words))
    colours = {word: tuple(c) for word, c in zip(words, _palette(len(words)))}
    figure = Figure(figsize=(3.2 * len(vocabularies), 2.9 * len(inputs)), layout="constrained")
    axes = figure.subplots(len(inputs), len(vocabularies), squeeze=False)
    before, training = model.vocabulary, model.training
    model.eval()
    for column, vocabulary in zip(axes.T, vocabularies):
        model.set_vocabulary(list(vocabulary))
        for axis, x in zip(column, inputs):
            with torch.no_grad():
                found = model([x])[0]["instances"].to("cpu")
            axis.imshow(draw(x, found[found.scores > threshold], list(vocabulary), colours))
            axis.set_axis_off()
        column[0].set_title("[" + ", ".join(vocabulary) + "]", fontsize=10)
    model.set_vocabulary(None if before is model.train_vocabulary else before)
    model.train(training)
    return figure


def draw(
    x: dict[str, Any], found: Instances, vocabulary: Sequence[str], colours: dict[str, tuple[float, ...]]
) -> np.ndarray:
    """Detections on the image of a model input, RGB uint8; boxes are in the original image's pixels."""
    image = x["image"].permute(1, 2, 0).to(torch.uint8).cpu().numpy()
    names = [vocabulary[i] for i in found.pred_classes.tolist()]
    boxes = found.pred_boxes.clone()
    boxes.scale(image.shape[1] / found.image_size[1], image.shape[0] / found.image_size[0])
    scale = max(1.0, 480 / max(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale, instance_mode=ColorMode.SEGMENTATION)
    labels = [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist())]
    drawn = visualizer.overlay_instances(
        boxes=boxes, labels=labels, assigned_colors=[colours[name] for name in names], alpha=1.0
    )
    return with_labels_inside(drawn)


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, whole or not at all; the folder is made."""
    save_figure(path, figure, dpi=80)


def _palette(count: int) -> np.ndarray:
    from matplotlib import colormaps

    return np.array(colormaps["tab10"].colors)[np.arange(count) % 10]  # type: ignore[attr-defined]
