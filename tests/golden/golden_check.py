"""A model of ours against a file of the authors' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from golden_file import Golden, digest
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from polydet.engine.loading import KeyMap, load_weights

LOSS_RTOL, BOX_ATOL, SCORE_ATOL = 1e-4, 0.05, 1e-4
GRADIENT_RTOL, GRADIENT_FLOOR = 1e-3, 1e-6  # of the gradient's own norm; of the whole model's


def load_drawn(model: nn.Module, golden: Golden, key_map: KeyMap, may_lack: Sequence[str] = ()) -> None:
    """Load the drawn weights through our layout map; every tensor of both sides must find its place.

    `may_lack`: prefixes of tensors of ours that the authors' code does not have.
    """
    ledger = load_weights(model, golden.state(), key_map=key_map, fresh=list(may_lack), min_coverage=0.0)
    lacking = [key for key in ledger.missing if not key.startswith(tuple(may_lack))]
    assert not lacking and not ledger.unexpected and not ledger.conflicts, ledger.table()


def train_step(model: nn.Module, inputs: list[dict[str, Any]], without: Sequence[str] = ()) -> dict[str, float]:
    """Losses of one step, but for those called `without`; their gradients stay in the parameters."""
    model.train()
    model.zero_grad(set_to_none=True)
    losses = {name: loss for name, loss in model(inputs).items() if name not in without}
    sum(losses.values()).backward()
    return {name: float(value.detach()) for name, value in losses.items()}


def detect(model: nn.Module, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections of a batch."""
    model.eval()
    with torch.no_grad():
        return model(inputs)


def check_losses(golden: Golden, step: str, losses: Mapping[str, float], name_of: Callable[[str], str]) -> None:
    """Every loss of the authors is one of ours (`name_of` their name) and nothing is left over."""
    expected = {name_of(name): value for name, value in golden.losses(step).items()}
    assert set(losses) == set(expected), f"apart: {sorted(set(losses) ^ set(expected))}"
    wrong = [
        f"{name}: {losses[name]:.8g}, the authors' {value:.8g}"
        for name, value in expected.items()
        if not np.isclose(losses[name], value, rtol=LOSS_RTOL, atol=1e-7)
    ]
    assert not wrong, "\n".join(wrong)


def gradients_by_their_names(model: nn.Module, golden: Golden, key_map: KeyMap) -> dict[str, Tensor | None]:
    """Our gradients moved back to the authors' tensors: the layout map's way, walked by element numbers."""
    placed = key_map(golden.ids())
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in golden.header["shapes"].values()]
    total = 1 + sum(sizes)  # number 0 is what a map makes up, such as a bias that the authors' code lacks
    flat, has = torch.zeros(total), torch.zeros(total, dtype=torch.bool)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in placed:
            ids = placed[name].flatten().long()
            flat[ids] += parameter.grad.flatten().float()
            has[ids] = True
    found: dict[str, Tensor | None] = {}
    starts = 1 + np.cumsum([0, *sizes[:-1]])
    wanted = set(golden.header["parameters"])
    for (name, shape), start, size in zip(golden.header["shapes"].items(), starts, sizes):
        if name in wanted:
            rows = slice(int(start), int(start) + size)
            found[name] = flat[rows].reshape(shape) if bool(has[rows].all()) else None
    return {name: found[name] for name in golden.header["parameters"]}


def check_gradients(golden: Golden, step: str, model: nn.Module, key_map: KeyMap) -> None:
    """Norm and projections of every parameter's gradient; a parameter frozen there is frozen here."""
    mine = digest(gradients_by_their_names(model, golden, key_map))
    theirs = golden.arrays[f"{step}/gradients"]
    whole = float(np.sqrt(np.nansum(theirs[:, 0].astype(float) ** 2)))
    allowed = GRADIENT_RTOL * np.nan_to_num(theirs[:, :1]) + GRADIENT_FLOOR * whole
    frozen = np.isnan(mine) & np.isnan(theirs)
    bad = ~(frozen | (np.abs(mine - theirs) <= allowed)).all(1)
    names = golden.header["parameters"]
    assert not bad.any(), "\n".join(f"{names[i]}: {mine[i]}, the authors' {theirs[i]}" for i in np.flatnonzero(bad))


def check_detections(golden: Golden, step: str, results: Sequence[Mapping[str, Any]], least: int = 5) -> None:
    """Detections pair one to one by class, box and score; only those that tie with the last score may be others."""
    for index, (result, (height, width, _)) in enumerate(zip(results, golden.header["steps"][step])):
        found = result["instances"].to("cpu")
        boxes, scores, classes = (golden.arrays[f"{step}/{index}/{kind}"] for kind in ("boxes", "scores", "classes"))
        assert len(scores) >= least and len(found) >= len(scores), f"image {index}: {len(found)} of {len(scores)}"
        limit = np.array([width, height, width, height])
        boxes = np.clip(boxes, 0, limit)  # Detectron2's results lie in the image, and have an area
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, classes = boxes[solid], scores[solid], classes[solid]
        apart = np.abs(found.pred_boxes.tensor.double().numpy()[:, None] - boxes).max(-1) / BOX_ATOL
        apart = np.maximum(apart, np.abs(found.scores.double().numpy()[:, None] - scores) / SCORE_ATOL)
        apart[found.pred_classes.numpy()[:, None] != classes] = 1e6
        mine, theirs = linear_sum_assignment(np.minimum(apart, 1e6))
        lost = theirs[apart[mine, theirs] > 1]
        lost = lost[scores[lost] > scores.min() + 2 * SCORE_ATOL]
        assert len(lost) == 0, f"image {index}: " + "; ".join(f"{scores[i]:.5f} {classes[i]} {boxes[i]}" for i in lost)
        assert len(theirs) == len(scores)
