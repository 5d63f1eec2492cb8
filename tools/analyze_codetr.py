#!/usr/bin/env python
"""The measurements of Co-DETR's paper on any dataset, as json and pictures.

    python tools/analyze_codetr.py features --run K=0 CONFIG CHECKPOINT --run K=1 CONFIG CHECKPOINT --dataset NAME
    python tools/analyze_codetr.py instability --run K=1 CONFIG EPOCH1 EPOCH2 EPOCH3 ...

features     IoF-IoB curves of the encoder's features (figure 2, eqs. 7 and 8) and score maps (figure 3)
attention    the same of the last decoder layer's cross-attention (figure 2)
instability  queries whose object changes from checkpoint to checkpoint (figure 5)
distance     KL divergence between the heads' activation maps (figure 6, eqs. 9 and 10)
queries      where original and customised positive queries lie (figure 7)
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from codetr import CoDETR, analysis, gradcam
from polydet.data import prepare_cards
from polydet.data.union import Union
from polydet.detr import DETR
from polydet.engine import ConfigError, build_model, load_file
from polydet.engine.command import command
from polydet.engine.published import skip_published_weights
from polydet.files import save_figure, write_text
from polydet.model_zoo import get_model_config

PICTURES = 4


class Run:
    """A trained model: label, model in inference mode, and its checkpoints."""

    def __init__(self, label: str, config: str, checkpoints: list[str], dataset: str | None, images: int) -> None:
        self.label, self.checkpoints = label, checkpoints
        self.cfg = get_model_config(config, (), checkpoints[-1])
        skip_published_weights(self.cfg.model)
        self.model = build_model(self.cfg).eval()
        if not isinstance(self.model, DETR):
            raise ConfigError(f"{label}: {config} builds a {type(self.model).__name__}, and the figures are of DETRs")
        if not dataset and not self.cfg.dataloader.test_datasets:
            raise ConfigError(f"{label}: {config} has no test datasets; name a card with --dataset")
        self.dataset = dataset or list(self.cfg.dataloader.test_datasets)[0]
        self.count = images
        self.load(checkpoints[-1])

    def needs_heads(self, queries: bool = False) -> None:
        """Raise ConfigError where the model has no auxiliary heads (or no queries of theirs) to measure."""
        parts = self.model.collaborators if isinstance(self.model, CoDETR) else None
        if parts is None or (queries and parts.queries is None):
            what = "positive queries" if queries else "auxiliary heads"
            raise ConfigError(f"{self.label}: its {type(self.model).__name__} has no {what}: take a Co-DETR with K > 0")

    def load(self, checkpoint: str) -> nn.Module:
        """The model with the weights of one of its checkpoints."""
        load_file(self.model, checkpoint)
        return self.model.eval()

    def samples(self) -> Iterator[dict[str, Any]]:
        """Model inputs with ground truth, augmented as for the test."""
        prepare_cards([self.dataset])
        union = Union([self.dataset])
        if union.num_labels != self.model.num_classes:
            raise ConfigError(
                f"{self.dataset} has {union.num_labels} classes, the model of {self.label} {self.model.num_classes}"
            )
        mapper = instantiate(self.cfg.dataloader.test.mapper)
        mapper.is_train = True  # keeps the ground truth
        for index in range(min(self.count, len(union))):
            yield mapper(union[index])


def measure_curves(runs: list[Run], score: Callable[[Any, dict[str, Any]], Tensor | None], output: Path) -> dict:
    """IoF-IoB curves of a score map, one a run."""
    figure, axis = plt.subplots(figsize=(5, 4))
    pictures, panels = plt.subplots(len(runs), PICTURES, squeeze=False, figsize=(3 * PICTURES, 3 * len(runs)))
    result = {}
    for row, run in zip(panels, runs):
        curve = analysis.IoFIoB()
        for index, x in enumerate(run.samples()):
            heat = score(run.model, x)
            if heat is None:
                raise ConfigError(f"{run.label} has no deformable cross-attention in its decoder")
            curve.update(heat.cpu(), x["instances"].gt_boxes.tensor)
            if index < PICTURES:
                row[index].imshow(x["image"].permute(1, 2, 0).numpy())
                low, high = float(heat.min()), float(heat.max())  # of the picture: they may be close together
                row[index].imshow(
                    heat.cpu().numpy(), cmap="jet", alpha=0.5, vmin=low, vmax=high if high > low else low + 1e-9
                )
                row[index].set_title(f"{run.label}: {low:.7g} to {high:.7g}", fontsize=8)
                row[index].set_axis_off()
        iof, iob = curve.curve()
        axis.plot(iob, iof, label=f"{run.label}: area {curve.area():.3f}")
        result[run.label] = {
            "thresholds": curve.thresholds().tolist(),
            "iof": iof.tolist(),
            "iob": iob.tolist(),
            "iof_at_iob_0.2": curve.iof_at(0.2),
            "area": curve.area(),
        }
    axis.set(xlabel="IoB", ylabel="IoF", xlim=(0, 1), ylim=(0, 1))
    axis.legend()
    save_figure(output / "iof_iob.png", figure, dpi=150, bbox_inches="tight")
    save_figure(output / "score_maps.png", pictures, dpi=100, bbox_inches="tight")
    return result


@torch.no_grad()
def feature_score(model: Any, x: dict[str, Any]) -> Tensor:
    """Eq. 7 of one image."""
    images = model.preprocess([x])
    maps = [m[0] for m in model.encode(images).maps()]
    return analysis.discriminability(maps, x["instances"].image_size)


def attention_score(model: Any, x: dict[str, Any]) -> Tensor | None:
    """Where the last decoder layer looks in one image."""
    result = analysis.run_image(model, x)
    if result.sampling is None:
        return None
    locations, weights = result.sampling
    return analysis.attention_score(
        locations[0], weights[0], result.memory.layout.spatial_shapes[0], x["instances"].image_size
    )


def measure_instability(runs: list[Run], output: Path) -> dict:
    """IS between consecutive checkpoints."""
    figure, axis = plt.subplots(figsize=(5, 4))
    result = {}
    for run in runs:
        if len(run.checkpoints) < 2:
            raise ConfigError(f"instability of {run.label} needs checkpoints of at least two epochs")
        states = []
        for checkpoint in run.checkpoints:
            model: Any = run.load(checkpoint)
            states.append([analysis.matched_objects(model, analysis.run_image(model, x)) for x in run.samples()])
        values = [analysis.instability(a, b) for a, b in zip(states, states[1:])]
        axis.plot(range(2, len(values) + 2), values, label=run.label)
        result[run.label] = values
    axis.set(xlabel="checkpoint", ylabel="IS")
    axis.legend()
    save_figure(output / "instability.png", figure, dpi=150, bbox_inches="tight")
    return result


def measure_distance(runs: list[Run], output: Path) -> dict:
    """S_ij and S_i of every run's heads."""
    figure, axis = plt.subplots(figsize=(6, 4))
    result, position = {}, 0
    for run in runs:
        run.needs_heads()
        model: Any = run.model
        distances = gradcam.HeadDistances()
        for x in run.samples():
            distances.update(gradcam.head_maps(model, x))
        heads = distances.heads()
        average = {h: distances.average(h) for h in heads if h != gradcam.DETR_HEAD}
        pairs = {f"{a} {b}": distances.pair(a, b) for a, b in distances.sums}
        result[run.label] = {"average": average, "pairs": pairs}
        axis.bar(range(position, position + len(average)), list(average.values()), label=run.label)
        position += len(average) + 1
    axis.set(ylabel="average distance")
    axis.legend()
    save_figure(output / "distance.png", figure, dpi=150, bbox_inches="tight")
    return result


def measure_queries(runs: list[Run], output: Path) -> dict:
    """Distances of customised queries to original ones, as fractions of the image's diagonal."""
    result: dict[str, dict[str, float]] = {}
    pictures, panels = plt.subplots(len(runs), PICTURES, squeeze=False, figsize=(3 * PICTURES, 3 * len(runs)))
    for row, run in zip(panels, runs):
        run.needs_heads(queries=True)
        model: Any = run.model
        sums = {"positive": [0.0, 0], "negative": [0.0, 0]}
        for index, x in enumerate(run.samples()):
            found = analysis.query_distances(model, x)
            for centers, owner in zip(found["custom"], found["object"][1:]):
                same = owner[:, None] == found["object"][0][None]
                _add(sums["positive"], torch.cdist(centers, found["positive"][0])[same])
                _add(sums["negative"], torch.cdist(centers, found["negative"][0]).flatten())
            if index < PICTURES:
                _draw(row[index], x, found)
        result[run.label] = {k: total / max(count, 1) / 2**0.5 for k, (total, count) in sums.items()}
    save_figure(output / "queries.png", pictures, dpi=100, bbox_inches="tight")
    return result


def _add(total: list, distances: Tensor) -> None:
    total[0] += float(distances.sum())
    total[1] += distances.numel()


def _draw(axis: Any, x: dict[str, Any], found: dict[str, list[Tensor]]) -> None:
    height, width = x["instances"].image_size
    axis.imshow(x["image"].permute(1, 2, 0).numpy())
    groups = [("original", found["positive"][0]), *((f"head {i}", c) for i, c in enumerate(found["custom"]))]
    for name, centers in groups:
        axis.scatter(centers[:, 0] * width, centers[:, 1] * height, s=8, label=name)
    axis.set_axis_off()
    axis.legend(fontsize=6)


MEASURES: dict[str, Callable[[list[Run], Path], dict]] = {
    "features": lambda runs, output: measure_curves(runs, feature_score, output),
    "attention": lambda runs, output: measure_curves(runs, attention_score, output),
    "instability": measure_instability,
    "distance": measure_distance,
    "queries": measure_queries,
}


def main(argv: list[str] | None = None) -> dict:
    """Run one measurement; writes `result.json` and pictures, says so, and returns what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=sorted(MEASURES))
    parser.add_argument("--run", nargs="+", action="append", required=True, metavar="LABEL CONFIG CHECKPOINT")
    parser.add_argument("--dataset", help="a card's name; default: the first test dataset of the config")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("output/analysis"))
    args = parser.parse_args(argv)
    for run in args.run:
        if len(run) < 3:
            parser.error(f"--run needs a label, a config and at least one checkpoint, got {run}")
    output = args.output / args.measure
    output.mkdir(parents=True, exist_ok=True)
    runs = [Run(label, config, checkpoints, args.dataset, args.images) for label, config, *checkpoints in args.run]
    result = MEASURES[args.measure](runs, output)
    write_text(output / "result.json", json.dumps(result, indent=1))
    for label, values in result.items():
        print(f"{label}: {_summary(values)}")
    print(f"wrote {', '.join(map(str, sorted(output.iterdir())))}")
    return result


def _summary(values: Any) -> str:
    """Numbers of a run in a line, without the curves."""
    if isinstance(values, list):
        return ", ".join(f"{value:.2f}" for value in values)
    flat = values.get("average", values)
    return ", ".join(f"{name} {value:.4g}" for name, value in flat.items() if isinstance(value, int | float))


if __name__ == "__main__":
    command(main, also=(ValueError,))
