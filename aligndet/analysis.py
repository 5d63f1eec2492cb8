"""What pre-training changed: embeddings of annotated boxes (figure 4) and centres of predicted boxes (figure 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.utils.events import EventStorage
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from aligndet.adapters import DetectorAdapter
from polydet.data import DetectionMapper, get_card, load_card
from polydet.files import save_figure


def annotated_views(
    dataset: str, classes: Sequence[str], per_class: int, short: int = 800, max_size: int = 1333
) -> Iterable[dict[str, Any]]:
    """Images of a card with the boxes of some classes only, until every class has ``per_class`` boxes.

    Yields:
        ``image``, ``instances`` (``gt_boxes``, ``gt_classes`` position in ``classes``, ``gt_ids``), ``objects`` (boxes
        of every annotation, of whatever class, ``[m, 4]`` xyxy in the image's pixels) and ``file_name``.

    Raises:
        ValueError: a class that the card lacks.
    """
    names = list(get_card(dataset).classes or ())
    if missing := [name for name in classes if name not in names]:
        raise ValueError(f"{dataset} has no classes {missing}; it has {names[:20]}")
    wanted = {names.index(name): i for i, name in enumerate(classes)}
    mapper = DetectionMapper(True, [T.ResizeShortestEdge(short, max_size)])
    seen = dict.fromkeys(range(len(classes)), 0)
    for record in load_card(dataset):
        kept = []
        for annotation in record["annotations"]:
            label = wanted.get(annotation["category_id"])
            if label is not None and not annotation["iscrowd"] and seen[label] < per_class:
                seen[label] += 1
                kept.append({**annotation, "category_id": label})
        if not kept:
            continue
        view = mapper({**record, "annotations": kept})
        view["instances"].gt_ids = torch.arange(len(view["instances"]))
        view["objects"] = _boxes(record, view["image"].shape[1:])
        yield view
        if all(count >= per_class for count in seen.values()):
            return


def _boxes(record: Mapping[str, Any], size: Sequence[int]) -> torch.Tensor:
    """Every annotated box of a dataset dict, crowds too, in a copy of its image of ``size`` (height, width): xyxy."""
    boxes = torch.tensor([annotation["bbox"] for annotation in record["annotations"]]).view(-1, 4)  # XYWH
    scale = torch.tensor([size[1] / record["width"], size[0] / record["height"]]).repeat(2)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1) * scale


@torch.no_grad()
def box_embeddings(adapter: DetectorAdapter, views: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Contrastive embedding of each annotated box: the mean over the predictions that are assigned to it.

    Returns:
        float32 ``[n, D]`` unit rows and int64 ``[n]`` class.
    """
    adapter.train()  # assignment is part of training
    adapter.detector.get_submodule(adapter.backbone).eval()
    embeddings, classes = [], []
    for view in views:
        with EventStorage(0):
            samples = adapter([view], with_losses=False).samples[-1]
        unit = torch.nn.functional.normalize(samples.embeddings.float(), dim=1)
        for i, label in enumerate(view["instances"].gt_classes.tolist()):
            mine = unit[samples.labels == i]
            if len(mine):
                embeddings.append(torch.nn.functional.normalize(mine.mean(0), dim=0).cpu().numpy())
                classes.append(label)
    return np.stack(embeddings), np.asarray(classes)


def separation(embeddings: np.ndarray, classes: np.ndarray) -> float:
    """Mean silhouette of the classes by cosine distance, -1 to 1: one number for what figure 4 shows."""
    return float(silhouette_score(embeddings, classes, metric="cosine"))


def draw_tsne(
    arms: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str], output: Path, seed: int = 0
) -> dict[str, float]:
    """Figure 4: one panel per arm, ``{title: (embeddings, classes)}``; returns each arm's :func:`separation`."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(arms), figsize=(5 * len(arms), 5), squeeze=False)
    scores = {}
    for axis, (title, (embeddings, classes)) in zip(axes[0], arms.items()):
        perplexity = min(30.0, (len(embeddings) - 1) / 3)
        points = TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(embeddings)
        scores[title] = separation(embeddings, classes)
        for i, name in enumerate(names):
            axis.scatter(*points[classes == i].T, s=6, label=name)
        axis.set(title=f"{title}: silhouette {scores[title]:.3f}", xticks=[], yticks=[])
    axes[0][0].legend()
    figure.tight_layout()
    save_figure(output, figure, dpi=120)
    plt.close(figure)
    return scores


@torch.no_grad()
def draw_centres(
    arms: Mapping[str, DetectorAdapter], views: Sequence[dict[str, Any]], output: Path, limit: int = 100
) -> dict[str, float]:
    """Figure 5: centres of the highest ranked boxes, a row per image and a column per arm.

    Args:
        views: of :func:`annotated_views`; ``objects`` of all classes count, pre-training knows none.

    Returns:
        for each arm the share of centres that lie in an annotated box of any class, 0 to 1.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(views), len(arms), figsize=(4 * len(arms), 3.4 * len(views)), squeeze=False)
    inside = {}
    for column, (title, adapter) in enumerate(arms.items()):
        adapter.eval()
        hits = total = 0
        for row, view in enumerate(views):
            boxes = adapter.ranked_boxes([view], limit)[0].cpu()
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            truth = view["objects"]
            within = (centres[:, None] > truth[None, :, :2]) & (centres[:, None] < truth[None, :, 2:])
            hits, total = hits + int(within.all(2).any(1).sum()), total + len(centres)
            axis = axes[row][column]
            axis.imshow(view["image"].permute(1, 2, 0).numpy())
            axis.scatter(*centres.T.numpy(), s=5, c="red")
            height, width = view["image"].shape[1:]
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        inside[title] = hits / max(total, 1)
        axes[0][column].set_title(f"{title}: {100 * inside[title]:.0f} % in objects of any class")
    figure.tight_layout()
    save_figure(output, figure, dpi=100)
    plt.close(figure)
    return inside
