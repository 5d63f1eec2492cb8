"""Exponential moving average of a model's parameters."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from polydet.weight_files import CheckpointError


class ModelEMA:
    """Average of the trainable parameters; buffers are copied.

    Args:
        model: the model that is trained.
        decay: weight of the past at each step; mmdetection's ``momentum`` is ``1 - decay``.
        warmup: use ``min(decay, (1 + step) / (10 + step))``, so that a short run is not dominated by its start.
        exponential_steps: time constant of another warm-up, 0 for none: ``decay * (1 - exp(-step / constant))``, which
            is mmdetection's ExpMomentumEMAHook with its `total_iter` of 2000 (the released Co-DINO ViT-L on COCO).

    Raises:
        ValueError: both warm-ups, or a negative constant.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, warmup: bool = False, exponential_steps: float = 0.0
    ) -> None:
        if exponential_steps < 0 or (warmup and exponential_steps):
            raise ValueError(
                f"train.ema has warmup={warmup} and exponential_steps={exponential_steps}: use one of the two "
                "warm-ups, with a positive number of steps"
            )
        self.decay, self.warmup, self.exponential_steps, self.step = decay, warmup, exponential_steps, 0
        self.exchanged = False
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def decay_now(self) -> float:
        """Weight of the past at the present step, counted from 1."""
        if self.exponential_steps:
            return self.decay * -math.expm1(-self.step / self.exponential_steps)
        return min(self.decay, (1 + self.step) / (10 + self.step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``; called once after every optimiser step."""
        self.step += 1
        decay = self.decay_now()
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
            CheckpointError: the checkpoint averaged other parameters.
        """
        if set(state["average"]) != set(self.average):
            difference = sorted(set(state["average"]) ^ set(self.average))
            raise CheckpointError(f"the checkpoint's average is of other parameters: {difference[:5]}")
        self.step = state["step"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
