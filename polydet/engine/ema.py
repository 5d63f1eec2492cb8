"""Exponential moving average of a model's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ModelEMA:
    """Average of the trainable parameters; buffers are copied.

    Args:
        model: the model that is trained.
        decay: weight of the past at each step; mmdetection's ``momentum`` is ``1 - decay``.
        warmup: use ``min(decay, (1 + step) / (10 + step))``, so that a short run is not dominated by its start.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: bool = False) -> None:
        self.decay, self.warmup, self.step = decay, warmup, 0
        self.exchanged = False
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``; called once after every optimiser step."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step)) if self.warmup else self.decay
        parameters = dict(model.named_parameters())
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach().to(average.dtype), 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block ``model`` has the averaged parameters, and ``average`` those that are trained."""
        self.exchange(model)
        self.exchanged = True
        try:
            yield
        finally:
            self.exchange(model)
            self.exchanged = False

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swap the model's parameters and the averaged ones."""
        parameters = dict(model.named_parameters())
        for name, average in self.average.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints; ``exchanged`` says that ``average`` holds the trained parameters, see :meth:`applied`."""
        return {"step": self.step, "average": self.average, "exchanged": self.exchanged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; the parameters must be the same ones.

        Raises:
            KeyError: the checkpoint averaged other parameters.
        """
        if set(state["average"]) != set(self.average):
            difference = sorted(set(state["average"]) ^ set(self.average))
            raise KeyError(f"the checkpoint's average is of other parameters: {difference[:5]}")
        self.step = state["step"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
