"""A schedule that follows a metric: decay when it stops rising, end when the lowest rate brings nothing more."""

import logging
import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from polydet.engine.trainer import Trainer

logger = logging.getLogger(__name__)

Event = Literal["improved", "wait", "decay", "stop"]


class Plateau:
    """State machine of the auto-step schedule (DetCLIPv2, appendix table 3).

    After each evaluation: a higher metric is stored and resets the counter of bad evaluations, any other one (NaN
    too) raises it.  At ``patience`` bad ones the rate is multiplied by ``factor`` and the counter starts again; a rate
    at or below ``min_lr`` becomes ``min_lr`` and is the last.  At that rate ``stop_patience`` bad evaluations end the
    run.

    Args:
        lr: rate at the start.
        patience, stop_patience: evaluations, t1 and t2 of the paper.
        factor: of a decay.
        min_lr: lowest rate.

    Raises:
        ValueError: a factor outside 0..1 or a patience below 1.
    """

    def __init__(
        self, lr: float, patience: int = 5, stop_patience: int = 8, factor: float = 0.1, min_lr: float = 1e-8
    ) -> None:
        if not 0 < factor < 1 or min(patience, stop_patience) < 1:
            raise ValueError(
                f"factor={factor} must be in 0..1, patience={patience}, stop_patience={stop_patience} >= 1"
            )
        self.patience, self.stop_patience, self.factor, self.min_lr = patience, stop_patience, factor, min_lr
        self.lr, self.best, self.bad = lr, -math.inf, 0
        self.at_min = lr <= min_lr

    @property
    def ended(self) -> bool:
        """Whether the last evaluation was one too many at the lowest rate."""
        return self.at_min and self.bad >= self.stop_patience

    def step(self, metric: float) -> Event:
        """Take one evaluation; ``lr`` is then the rate to go on with."""
        if metric > self.best:
            self.best, self.bad = metric, 0
            return "improved"
        self.bad += 1
        if self.at_min:
            return "stop" if self.ended else "wait"
        if self.bad < self.patience:
            return "wait"
        self.bad = 0
        self.lr *= self.factor
        if self.lr <= self.min_lr * (1 + 1e-9):
            self.lr, self.at_min = self.min_lr, True
        return "decay"


class PlateauSchedule(HookBase):
    """Drives all learning rates by a :class:`Plateau` over the metric of each evaluation, and ends the run.

    The rates of ``lr_multiplier`` (warmup, then constant) are multiplied by the plateau's; groups keep their ratios.
    It stands after the evaluation's hook and before the checkpointer's, so that the checkpoint of an evaluation step
    knows what the evaluation found.  In a config: ``train.hooks``, with ``train.eval_period_epochs=1``.

    Args:
        metric: ``dataset/task/name``; higher is better.
        lr: rate that ``min_lr`` is compared with; by default the highest of the groups.
        warmup_iters: evaluations before this step count as improvements only.
        others: see :class:`Plateau`.

    Raises:
        ValueError: when training begins, if the evaluation's hook stands after this one.
    """

    trainer: Trainer

    def __init__(
        self,
        metric: str,
        patience: int = 5,
        stop_patience: int = 8,
        factor: float = 0.1,
        min_lr: float = 1e-8,
        warmup_iters: int = 0,
        lr: float | None = None,
    ) -> None:
        self.metric, self.warmup_iters, self.base_lr = metric, warmup_iters, lr
        self.settings = {"patience": patience, "stop_patience": stop_patience, "factor": factor, "min_lr": min_lr}
        self.plateau: Plateau | None = None
        self.seen = -1
        self._restored: dict[str, Any] = {}

    def before_train(self) -> None:
        later = self.trainer._hooks[self.trainer._hooks.index(self) + 1 :]
        if any(isinstance(hook, hooks.EvalHook) for hook in later):
            raise ValueError("PlateauSchedule must stand after EvalHook: its state would be an evaluation behind")
        groups = self.trainer.optimizer.param_groups
        if self.base_lr is None:
            self.base_lr = max(group.get("initial_lr", group["lr"]) for group in groups)
        self.plateau = Plateau(self.base_lr, **self.settings)  # type: ignore[arg-type]
        self.__dict__.update({k: v for k, v in self._restored.items() if k == "seen"})
        self.plateau.__dict__.update({k: v for k, v in self._restored.items() if k != "seen"})
        if self.plateau.ended:  # killed after its last step, in the final evaluation
            self.trainer.max_iter = self.trainer.start_iter
        self._scale()

    def after_step(self) -> None:
        assert self.plateau is not None
        value, step = self._latest()
        if step > self.seen:
            self.seen = step
            self._take(value, step)
        self._scale()

    def _latest(self) -> tuple[float, int]:
        """The metric's last value and step, as the main process knows them (evaluators answer there)."""
        found = self.trainer.storage.latest().get(self.metric, (0.0, -1))
        if comm.get_world_size() == 1:
            return float(found[0]), int(found[1])
        pair = torch.tensor([float(found[0]), float(found[1])], dtype=torch.float64, device=self.trainer.device)
        dist.broadcast(pair, 0)
        return float(pair[0]), int(pair[1])

    def _take(self, value: float, step: int) -> None:
        plateau = self.plateau
        assert plateau is not None
        if step < self.warmup_iters:
            plateau.best = max(plateau.best, value)
            return
        event = plateau.step(value)
        if event in ("decay", "stop"):
            logger.info("%s %.4g at step %d (best %.4g): %s, lr %.3g", *self._facts(value, step), event, plateau.lr)
        if event == "stop":
            self.trainer.max_iter = self.trainer.iter + 1
            for hook in self.trainer._hooks:
                if isinstance(hook, hooks.PeriodicCheckpointer):
                    hook.max_iter = self.trainer.max_iter  # it saves the final checkpoint after this step

    def _facts(self, value: float, step: int) -> tuple[str, float, int, float]:
        assert self.plateau is not None
        return self.metric, value, step, self.plateau.best

    def _scale(self) -> None:
        """The scheduler's hook has just set the rates of the next step."""
        assert self.plateau is not None and self.base_lr is not None
        for group in self.trainer.optimizer.param_groups:
            group["lr"] *= self.plateau.lr / self.base_lr

    def state_dict(self) -> dict[str, float]:
        if self.plateau is None:
            return {}
        names = ("lr", "best", "bad", "at_min")
        return {"seen": self.seen, **{name: getattr(self.plateau, name) for name in names}}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._restored = dict(state)
