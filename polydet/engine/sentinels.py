"""Hooks that stop, or loudly warn of, runs that would fail in silence."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from polydet.engine.nonfinite import NonFiniteError
from polydet.engine.trainer import Trainer
from polydet.files import write_text
from polydet.sealed import save_sealed

logger = logging.getLogger(__name__)


class SilentFailure(RuntimeError):
    """Training runs, but cannot be learning what was asked for."""


class GroundTruthSentinel(HookBase):
    """Stops a run whose first ``patience`` steps hold no ground truth at all, in any process."""

    trainer: Trainer

    def __init__(self, patience: int = 50) -> None:
        self.patience, self.seen, self.steps = patience, 0, 0

    def after_step(self) -> None:
        if self.steps >= self.patience or self.seen:
            return
        self.steps += 1
        self.seen += self.trainer.num_ground_truth
        if self.steps == self.patience and sum(comm.all_gather(self.seen)) == 0:
            raise SilentFailure(
                f"no ground-truth box in the first {self.patience} steps: look at dataloader.train.datasets, at the "
                "category ids of their annotation files, and at augmentations that crop everything away"
            )


class ZeroLossSentinel(HookBase):
    """Warns once of each loss that stays exactly zero for ``patience`` steps; stops when all of them do."""

    trainer: Trainer

    def __init__(self, patience: int = 100) -> None:
        self.patience, self.steps = patience, 0
        self.zero: dict[str, bool] = {}

    def after_step(self) -> None:
        if self.steps >= self.patience:
            return
        self.steps += 1
        for name, (value, _) in self.trainer.storage.latest().items():
            if "loss" in name and name != "total_loss":
                self.zero[name] = self.zero.get(name, True) and value == 0.0
        if self.steps < self.patience:
            return
        silent = [name for name, zero in self.zero.items() if zero]
        if silent and len(silent) == len(self.zero):
            raise SilentFailure(f"all losses were exactly zero for {self.patience} steps: {', '.join(silent)}")
        if silent:
            logger.warning("exactly zero for %d steps: %s", self.patience, ", ".join(silent))


class FrozenSentinel(HookBase):
    """Stops when a parameter that does not require a gradient has moved, and warns of ones that never got one.

    Modules that move by other means (a momentum copy) are named in the model's attribute ``momentum_modules``.

    Args:
        period: steps between two looks at the frozen parameters; 0 looks only at the end.
    """

    trainer: Trainer

    def __init__(self, period: int = 1000) -> None:
        self.period = period
        self.before: dict[str, Tensor] = {}
        self.checked_gradients = False

    def before_train(self) -> None:
        model = self.trainer.raw_model
        moving = tuple(f"{name}." for name in getattr(model, "momentum_modules", ()))
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad and not name.startswith(moving or ("\0",)):
                self.before[name] = _digest(parameter)

    def after_step(self) -> None:
        if not self.checked_gradients:
            self.checked_gradients = True
            self._warn_of_missing_gradients()
        if self.period and (self.trainer.iter + 1) % self.period == 0:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # not on the way out of another error
            self._check()

    def _check(self) -> None:
        parameters = dict(self.trainer.raw_model.named_parameters())
        moved = [name for name, digest in self.before.items() if not torch.equal(_digest(parameters[name]), digest)]
        if moved:
            raise SilentFailure(f"frozen parameters moved: {', '.join(moved[:8])}{' ...' if len(moved) > 8 else ''}")

    def _warn_of_missing_gradients(self) -> None:
        named = self.trainer.raw_model.named_parameters()
        without = [name for name, p in named if p.requires_grad and p.grad is None]
        if without:
            logger.warning(
                "%d trainable parameters got no gradient in the first step: %s%s",
                len(without),
                ", ".join(without[:8]),
                " ..." if len(without) > 8 else "",
            )


def _digest(parameter: Tensor) -> Tensor:
    """Two sums that a change of any element moves, exact for the same values on the same device."""
    flat = parameter.detach().reshape(-1).double()
    weights = torch.arange(1, flat.numel() + 1, device=flat.device, dtype=torch.float64)
    return torch.stack([flat.sum(), (flat * weights).sum()]).cpu()


class NonFiniteReplay:
    """Saves what a failed step needs to be repeated: weights, batch of every process, seed, config.

    ``python tools/replay_step.py FOLDER`` repeats it and names the first module whose output is not finite.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def save(self, trainer: Trainer, error: NonFiniteError) -> Path:
        """Write the folder ``nonfinite/iter_{n}`` and return it; called by every process, or the one that knows."""
        folder = self.output_dir / "nonfinite" / f"iter_{trainer.iter:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        batch = [_plain(item) for item in trainer.batch]
        rank = comm.get_rank()
        save_sealed(batch, folder / f"batch_rank{rank}.pth")
        if comm.is_main_process() or error.alone:
            save_sealed({"model": trainer.raw_model.state_dict()}, folder / "model.pth")
            info = {
                "iteration": trainer.iter,
                "seed": trainer.seed,
                "processes": comm.get_world_size(),
                "message": str(error),
                "losses": {name: repr(value) for name, value in error.values.items()},
                "files": [str(item.get("file_name")) for item in trainer.batch],
            }
            write_text(folder / "info.json", json.dumps(info, indent=2))
        return folder


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """A model input as tensors, numbers and strings, so that it opens without pickle."""
    plain: dict[str, Any] = {key: value for key, value in item.items() if isinstance(value, Tensor | int | float | str)}
    if "instances" in item:
        instances = item["instances"]
        fields = {k: getattr(v, "tensor", v) for k, v in instances.get_fields().items()}
        plain["instances"] = {
            "image_size": tuple(int(side) for side in instances.image_size),
            "fields": {k: v for k, v in fields.items() if isinstance(v, Tensor)},
        }
    return plain
