"""Running averages that modules keep as plain numbers, in the checkpoint."""

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from polydet.engine.trainer import Trainer

logger = logging.getLogger(__name__)

NAMES = ("loss_normalizer",)


class RunningAverages(HookBase):
    """Saves and restores what Detectron2's dense detectors (FCOS, RetinaNet) average from step to step.

    Their ``_ema_update`` keeps the number that losses are divided by as a plain attribute, which no state dict holds:
    without it a resumed run starts the average anew.  Every process has its own, so that all of them are gathered
    when a checkpoint is due; register this hook in every process, before the checkpointer.

    Args:
        period: steps between checkpoints.
    """

    trainer: Trainer

    def __init__(self, period: int) -> None:
        self.period = period
        self._ranks: list[dict[str, float]] = []
        self._restored: list[dict[str, float]] = []

    def before_train(self) -> None:
        if not self._restored:
            return
        same = len(self._restored) == comm.get_world_size()
        if not same:
            logger.warning(
                "the checkpoint is of %d processes: running averages start from the first one's", len(self._restored)
            )
        values = self._restored[comm.get_rank() if same else 0]
        modules = dict(self.trainer.raw_model.named_modules())
        for key, value in values.items():
            path, _, name = key.rpartition(".")
            if path in modules:
                setattr(modules[path], name, value)
            else:
                logger.warning("the checkpoint has a running average of %r, which the model lacks", path)

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter >= self.trainer.max_iter or (self.period > 0 and next_iter % self.period == 0):
            self.gather()

    def gather(self) -> None:
        """Take the averages of all processes for the next checkpoint; called by each of them."""
        self._ranks = comm.all_gather(self._read())

    def _read(self) -> dict[str, float]:
        """``path of the module.attribute`` -> value, of averages that have begun."""
        found = {}
        for path, module in self.trainer.raw_model.named_modules():
            for name in NAMES if hasattr(module, "_ema_update") else ():
                if isinstance(value := getattr(module, name, None), int | float):
                    found[f"{path}.{name}"] = float(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """``{"ranks": [averages of each process]}`` of the last step at which a checkpoint was due; empty without."""
        return {"ranks": self._ranks} if any(self._ranks) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep ``state`` until training begins."""
        self._restored = list(state["ranks"])
