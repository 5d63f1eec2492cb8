"""Numbers that are NaN or infinite: the error that stops a run, and where they began."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(FloatingPointError):
    """A loss, gradient norm, weight or activation is NaN or infinite.

    Attributes:
        values: losses of the step, where it came so far.
        alone: whether only this process knows; the others are in the step.
    """

    def __init__(self, message: str, values: Mapping[str, float], alone: bool = False) -> None:
        super().__init__(message)
        self.values, self.alone = dict(values), alone


def bad_weights(model: nn.Module) -> list[str]:
    """Names of parameters that are not finite and of buffers with NaN."""
    parameters = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    floating = ((name, b) for name, b in model.named_buffers() if b.is_floating_point())
    return parameters + [name for name, b in floating if bool(torch.isnan(b).any())]


def refuse_bad_weights(model: nn.Module, source: str) -> None:
    """Raise for a model that would answer with NaN.

    Raises:
        NonFiniteError: naming ``source`` and the first weights.
    """
    if bad := bad_weights(model):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteError(f"{source}: the weights {bad[0]}{more} are NaN or infinite", {})


def first_nonfinite_module(model: nn.Module, batch: list[dict[str, Any]]) -> str | None:
    """Name of the first module whose output is not finite when the model sees ``batch``; None when all are.

    A model that cannot go on from there raises; what it raised before is passed on.
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and any(not bool(torch.isfinite(t).all()) for t in _floats(output)):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name or "model")) for name, module in model.named_modules()]
    try:
        losses = model(batch)
    except Exception:
        if not found:
            raise
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    return next((name for name, loss in losses.items() if not math.isfinite(float(loss))), None)


def cause_of(error: Exception, model: nn.Module, batch: list[dict[str, Any]]) -> str:
    """What in the numbers made a training step raise ``error``, or "": found by repeating it."""
    if isinstance(error, torch.OutOfMemoryError):
        return ""
    if bad := bad_weights(model):
        return f"weights {bad[0]}"
    try:
        with torch.no_grad():
            name = first_nonfinite_module(model, batch)
    except Exception:  # the same again, with finite numbers
        return ""
    return f"output of {name}" if name else ""


def _floats(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _floats(item)
