"""Time of METR's group matching against a loop over tensor slices; gate: at most half of it.

    OMP_NUM_THREADS=1 python benchmarks/metr_matching.py --output benchmarks/results/metr_matching

Shapes of METR on COCO: 7 layers (6 decoder layers and the encoder's proposals), 100 queries of 20 categories, images
with 1 to 20 objects of 1 to 8 categories.  Prints a table and exits with 1 if the gate fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor, nn

from metr.matching import GroupMatcher
from polydet.detr import HungarianMatcher, Predictions, Targets

GATE = 0.5


def make_case(
    batch: int, layers: int, num_queries: int, num_groups: int, objects: int
) -> tuple[Predictions, list[Targets], Tensor]:
    """Random predictions, targets and query categories."""
    classes = torch.stack([torch.randperm(80)[:num_groups] for _ in range(batch)])
    targets = []
    for row in classes:
        count = int(torch.randint(1, objects + 1, ()))
        present = row[: int(torch.randint(1, 9, ()))]
        labels = present[torch.randint(len(present), (count,))]
        targets.append(Targets(labels, torch.rand(count, 4) * 0.4 + 0.1))
    boxes = torch.rand(layers, batch, num_queries, 4) * 0.4 + 0.1
    predictions = Predictions(torch.randn(layers, batch, num_queries, 1), boxes)
    return predictions, targets, classes.repeat_interleave(num_queries // num_groups, dim=1)


@torch.no_grad()
def tensor_slices(
    matcher: HungarianMatcher, predictions: Predictions, targets: list[Targets], classes: Tensor
) -> list[tuple[int, int, int, int]]:
    """The plain way: one cost for all layers and images, then a slice of it for each layer, image and category."""
    labels = nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True)
    boxes = nn.utils.rnn.pad_sequence([t.boxes for t in targets], batch_first=True, padding_value=0.5)
    cost = matcher.cost(predictions, torch.zeros_like(labels), boxes).cpu()
    pairs = []
    for layer in range(len(cost)):
        for image, target in enumerate(targets):
            for category in target.labels.unique():
                query = torch.where(classes[image] == category)[0]
                mine = torch.where(target.labels == category)[0]
                rows, columns = linear_sum_assignment(cost[layer, image][query][:, mine])
                pairs += [(layer, image, int(query[q]), int(mine[t])) for q, t in zip(rows, columns)]
    return pairs


@torch.no_grad()
def block_diagonal(
    matcher: HungarianMatcher, predictions: Predictions, targets: list[Targets], classes: Tensor
) -> list[tuple[int, int, int, int]]:
    """One assignment an image, with a constant where query and object differ in category."""
    labels = nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True, padding_value=-1)
    boxes = nn.utils.rnn.pad_sequence([t.boxes for t in targets], batch_first=True, padding_value=0.5)
    cost = matcher.cost(predictions, torch.zeros_like(labels), boxes)
    cost = cost.masked_fill(classes[:, :, None] != labels[:, None], 1e6).cpu().numpy()
    pairs = []
    for layer in range(len(cost)):
        for image, target in enumerate(targets):
            block = cost[layer, image, :, : len(target)]
            rows, columns = linear_sum_assignment(block)
            pairs += [(layer, image, q, t) for q, t in zip(rows, columns) if block[q, t] < 1e6]
    return pairs


def best_time(call: Callable[[], object], repeat: int) -> float:
    """Least of `repeat` times, in milliseconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.min(times))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--output", type=Path, help="write the table as md and the numbers as json there")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    matcher, rows, worst = GroupMatcher(), [], 0.0
    for batch, objects in ((1, 20), (2, 20), (8, 20), (2, 100)):
        case = make_case(batch, 7, 100, 20, objects)
        found = matcher(*case)
        expected = tensor_slices(matcher, *case)
        got = torch.stack((found.layer, found.image, found.query, found.target), dim=1).tolist()
        if sorted(map(tuple, got)) != sorted(expected):
            raise AssertionError("group matching and the loop disagree")
        ours = best_time(lambda case=case: matcher(*case), args.repeat)
        slices = best_time(lambda case=case: tensor_slices(matcher, *case), args.repeat)
        block = best_time(lambda case=case: block_diagonal(matcher, *case), args.repeat)
        worst = max(worst, ours / slices)
        rows.append([batch, objects, round(ours, 2), round(slices, 2), round(block, 2), round(ours / slices, 2)])
    columns = ["images", "objects up to", "ours ms", "tensor slices ms", "one block ms", "ratio"]
    verdict = "passed" if worst <= GATE else "FAILED"
    text = (
        f"{tabulate(rows, headers=columns, tablefmt='github')}\n\ngate: ratio <= {GATE}: {verdict} (worst {worst:.2f})"
    )
    print(text)
    if args.output:
        machine = f"{platform.machine()} CPU, 1 thread, torch {torch.__version__}"
        numbers = {"machine": machine, "gate": GATE, "rows": [dict(zip(columns, row)) for row in rows]}
        args.output.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
        args.output.with_suffix(".md").write_text(
            f"# METR's group matching\n\n{machine}; least of {args.repeat}\n\n{text}\n"
        )
    return int(worst > GATE)


if __name__ == "__main__":
    raise SystemExit(main())
