"""Parameter groups and learning-rate schedules."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

from polydet.weight_files import CheckpointError

logger = logging.getLogger(__name__)

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    lr_factors: Mapping[str, float] | None = None,
    weight_decay_factors: Mapping[str, float] | None = None,
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    lr_factor_bias: float = 1.0,
    layer_decay: float = 1.0,
    layer_prefix: str = r"backbone\..*?blocks\.(\d+)\.",
    num_layers: int = 0,
) -> list[dict[str, Any]]:
    """Trainable parameters in groups of equal learning rate and weight decay.

    Args:
        model: parameters with ``requires_grad`` are taken, each once.
        lr, weight_decay: base values.
        lr_factors, weight_decay_factors: regular expression (searched in the parameter's name) -> factor; the factors
            of all that match multiply.  A pattern that matches nothing is an error.
        weight_decay_norm, weight_decay_bias: weight decay of norm layers and of biases, when different.
        lr_factor_bias: factor of the learning rate of biases (Detectron: 2 for FCOS in some papers).
        layer_decay: factor ``layer_decay ** (num_layers + 1 - depth)`` for backbone parameters, depth being 1 + the
            number that ``layer_prefix`` captures, or 0 for backbone parameters without one (patch and position
            embeddings).
        num_layers: number of layers under ``layer_prefix``.

    Raises:
        ValueError: a pattern matches no parameter, or nothing is trainable.
    """
    lr_factors, weight_decay_factors = dict(lr_factors or {}), dict(weight_decay_factors or {})
    unused = set(lr_factors) | set(weight_decay_factors)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = f"{prefix}.{name}" if prefix else name
            decay = weight_decay
            if isinstance(module, NORMS) and weight_decay_norm is not None:
                decay = weight_decay_norm
            elif name == "bias" and weight_decay_bias is not None:
                decay = weight_decay_bias
            rate = lr * (lr_factor_bias if name == "bias" else 1.0)
            rate *= _product(lr_factors, full, unused) * _layer_factor(full, layer_decay, layer_prefix, num_layers)
            decay *= _product(weight_decay_factors, full, unused)
            group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
            group["params"].append(parameter)
    if unused:
        raise ValueError(f"optimizer patterns match no trainable parameter: {sorted(unused)}")
    if not groups:
        raise ValueError("the model has no trainable parameter")
    return list(groups.values())


def _product(factors: Mapping[str, float], name: str, unused: set[str]) -> float:
    product = 1.0
    for pattern, factor in factors.items():
        if re.search(pattern, name):
            unused.discard(pattern)
            product *= factor
    return product


def _layer_factor(name: str, decay: float, pattern: str, num_layers: int) -> float:
    if decay == 1.0 or not name.startswith("backbone."):
        return 1.0
    match = re.search(pattern, name)
    depth = int(match.group(1)) + 1 if match else 0
    return decay ** (num_layers + 1 - depth)


def lr_schedule(
    max_iter: int,
    iters_per_epoch: float = 0.0,
    kind: Literal["step", "cosine", "constant"] = "step",
    milestones: Sequence[float] = (),
    unit: Literal["iter", "epoch", "fraction"] = "iter",
    gamma: float = 0.1,
    end_factor: float = 0.0,
    warmup_iters: int = 0,
    warmup_factor: float = 1e-3,
    warmup: Literal["linear", "constant"] = "linear",
) -> ParamScheduler:
    """Multiplier of the learning rate over training, as an fvcore scheduler on [0, 1).

    Args:
        max_iter: optimiser steps of the run; the engine fills it in.
        iters_per_epoch: optimiser steps per epoch; the engine fills it in.
        kind: ``step`` (times ``gamma`` at each milestone), ``cosine`` to ``end_factor``, or ``constant``.
        milestones: where to step, in ``unit``; one beyond the end of the run is never reached.
        warmup_iters: length of the warmup; at most the whole run.
        warmup_factor: first multiplier.

    Raises:
        ValueError: unknown ``kind`` or ``unit``, milestones that do not rise, or epochs of unknown length.
    """
    scheduler: ParamScheduler
    if kind == "step":
        fractions = [_fraction(m, unit, max_iter, iters_per_epoch) for m in milestones]
        if fractions != sorted(set(fractions)):
            raise ValueError(f"milestones must rise, got {list(milestones)}")
        reached = [f for f in fractions if f < 1.0]
        scheduler = (
            MultiStepParamScheduler(
                values=[gamma**i for i in range(len(reached) + 1)],
                milestones=[round(f * max_iter) for f in reached],
                num_updates=max_iter,
            )
            if reached
            else LinearParamScheduler(1.0, 1.0)
        )
    elif kind == "cosine":
        scheduler = CosineParamScheduler(1.0, end_factor)
    elif kind == "constant":
        scheduler = LinearParamScheduler(1.0, 1.0)  # fvcore's constant one refuses the last step
    else:
        raise ValueError(f"schedule kind must be step, cosine or constant, not {kind!r}")
    if warmup_iters <= 0:
        return scheduler
    return WarmupParamScheduler(scheduler, warmup_factor, min(warmup_iters / max_iter, 1.0), warmup)


def _fraction(milestone: float, unit: str, max_iter: int, iters_per_epoch: float) -> float:
    if unit == "fraction":
        return float(milestone)
    if unit == "iter":
        return milestone / max_iter
    if unit == "epoch":
        if iters_per_epoch <= 0:
            raise ValueError("milestones in epochs need a train loader of known length")
        return milestone * iters_per_epoch / max_iter
    raise ValueError(f"unit must be iter, epoch or fraction, not {unit!r}")


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Sequence[str], stored: Sequence[str] | None
) -> None:
    """Give an optimiser the state of a checkpoint by the parameters' names; its rates stay those of the config.

    Differences of rates are logged: they count from here on.

    Args:
        optimizer: as the config built it.
        state: of the checkpoint's optimiser.
        names: of ``optimizer``'s parameters, in its order.
        stored: of the checkpoint's; None in one that has none, whose parameters are taken in their order.

    Raises:
        CheckpointError: other parameters are trained.
    """
    places = [place for group in state["param_groups"] for place in group["params"]]
    if stored is None and len(places) == len(names):
        stored = names
    if stored is None or set(stored) != set(names) or len(stored) != len(places):
        different = sorted(set(stored or ()) ^ set(names)) if stored else []
        what = f"{different[0]} and {len(different) - 1} more" if different else f"{len(places)} and {len(names)}"
        raise CheckpointError(
            f"other parameters are trained than in the run that is resumed ({what}): what is frozen (freeze_at, "
            "frozen norms) stays as it was with --resume; train.init_checkpoint starts a new run from these weights"
        )
    place_of = dict(zip(stored, places))
    own = optimizer.state_dict()
    order = [place for group in own["param_groups"] for place in group["params"]]
    kept = {
        mine: state["state"][place_of[name]] for mine, name in zip(order, names) if place_of[name] in state["state"]
    }
    _say_rates(own["param_groups"], state["param_groups"], names, stored)
    optimizer.load_state_dict({"state": kept, "param_groups": own["param_groups"]})


def _say_rates(
    own: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]], names: Sequence[str], stored: Sequence[str]
) -> None:
    """Log settings of parameters that are not what they were, the rate without its schedule first of all."""
    before, now = _by_name(old, stored), _by_name(own, names)
    changes = Counter[tuple[str, str, str]]()
    for name in names:
        for key in now[name].keys() & before[name].keys() - {"params", "lr", "foreach", "fused", "capturable"}:
            if before[name][key] != now[name][key]:
                changes[key, str(before[name][key]), str(now[name][key])] += 1
    for (key, was, is_now), count in sorted(changes.items()):
        label = "learning rate" if key == "initial_lr" else key
        logger.warning("%s of %d parameters: %s until here, %s from here on", label, count, was, is_now)


def _by_name(groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    left = iter(names)
    return {
        next(left): {**group, "initial_lr": group.get("initial_lr", group["lr"])}
        for group in groups
        for _ in group["params"]
    }
