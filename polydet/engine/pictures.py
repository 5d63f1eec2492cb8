"""Pictures of a run: curves of losses and metrics, ground truth beside predictions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer
from torch import nn

from polydet.data import DatasetError, load_card, read_image
from polydet.engine.progress import read_metrics
from polydet.files import save_figure

Panel = tuple[str, np.ndarray, np.ndarray]  # title, ground truth, predictions


def draw_predictions(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    dataset: str,
    count: int,
    min_score: float = 0.3,
    max_boxes: int = 20,
) -> list[Panel]:
    """Ground truth and predictions drawn on the first ``count`` images with ground truth of a test loader.

    Args:
        model: Detectron2's inference contract, classes of ``dataset``.
        min_score: predictions below it are left out, unless they are the image's best.
        max_boxes: most predictions drawn on an image.
    """
    table = load_card(dataset)
    places = {table.image_id(i): i for i in range(len(table))}
    was_training = model.training
    model.eval()
    panels: list[Panel] = []
    with torch.no_grad():
        for batch in loader:
            for item in batch:
                place = places.get(item["image_id"])
                record = None if place is None else table[place]
                if record is None or not record["annotations"]:
                    continue
                panels.append(_panel(model, item, record, dataset, min_score, max_boxes))
                if len(panels) == count:
                    model.train(was_training)
                    return panels
    model.train(was_training)
    return panels


def _panel(
    model: nn.Module, item: dict[str, Any], record: dict[str, Any], dataset: str, min_score: float, max_boxes: int
) -> Panel:
    title = f"{dataset}: {Path(record['file_name']).name}"
    try:
        image = read_image(record)
    except DatasetError:  # evaluation took a black picture in its place and said so
        image = np.zeros((record["height"], record["width"], 3), np.uint8)
        title += " (cannot be read)"
    metadata = MetadataCatalog.get(dataset)
    scale = max(1.0, 480 / max(image.shape[:2]))
    truth = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE).draw_dataset_dict(record)
    instances = model([item])[0]["instances"].to("cpu")
    instances = instances[instances.scores.argsort(descending=True)][:max_boxes]
    instances = (
        instances[(instances.scores >= min_score) | (instances.scores == instances.scores.max())]
        if len(instances)
        else instances
    )
    if instances.has("pred_masks"):
        instances.remove("pred_masks")
    found = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE).draw_instance_predictions(instances)
    return title, with_labels_inside(truth), with_labels_inside(found)


def with_labels_inside(drawn: VisImage) -> np.ndarray:
    """The picture of a Visualizer, RGB uint8, its labels moved (and those that are too wide made smaller) to lie in it.

    Detectron2 writes from the box's left edge on, and what sticks out of the picture is cut.
    """
    renderer: Any = drawn.canvas.get_renderer()
    frame = drawn.ax.get_window_extent(renderer)
    for label in drawn.ax.texts:
        box = label.get_window_extent(renderer)
        if box.width > frame.width:
            label.set_fontsize(label.get_fontsize() * frame.width / box.width * 0.95)
            box = label.get_window_extent(renderer)
        shift = [
            max(low - a, 0) or min(high - b, 0)
            for low, high, a, b in ((frame.x0, frame.x1, box.x0, box.x1), (frame.y0, frame.y1, box.y0, box.y1))
        ]
        if any(shift):
            place = drawn.ax.transData.transform(label.get_position()) + shift
            label.set_position(drawn.ax.transData.inverted().transform(place))
    return drawn.get_image()


def save_panels(panels: list[Panel], path: Path) -> None:
    """One row a panel: ground truth left, predictions right."""
    figure = matplotlib.figure.Figure(figsize=(11, 4.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for (title, truth, found), (left, right) in zip(panels, axes):
        left.imshow(truth)
        right.imshow(found)
        left.set_title(f"{title}\nground truth", fontsize=9)
        right.set_title("predictions", fontsize=9)
        left.axis("off")
        right.axis("off")
    save_figure(path, figure, dpi=80)


def save_curves(metrics_file: Path, path: Path) -> None:
    """Losses, learning rate and evaluation metrics of ``metrics.json`` over iterations, as ``curves.png``."""
    records = read_metrics(metrics_file)
    if not records:
        return
    names = sorted({name for record in records for name in record})
    losses = [n for n in names if "loss" in n]
    scores = [n for n in names if n.endswith(("/AP", "/AP50", "/mAP"))]
    groups = [("loss", losses), ("learning rate", [n for n in names if n == "lr"]), ("AP", scores)]
    groups = [(title, members) for title, members in groups if members]
    figure = matplotlib.figure.Figure(figsize=(6 * len(groups), 4.5), layout="constrained")
    for axis, (title, members) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups):
        for name in members:
            points = [(r["iteration"], r[name]) for r in records if name in r and np.isfinite(r[name])]
            if points:
                steps, values = zip(*points)
                axis.plot(steps, _smooth(values), label=name, marker="o" if len(points) < 5 else None, linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    save_figure(path, figure, dpi=100)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Moving median over a twentieth of the curve, so that single batches do not hide the trend."""
    half = len(values) // 40
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
