"""The best checkpoint by a metric.  Detectron2's own hook would make a resumed run start there."""

import contextlib
import math
from pathlib import Path

from detectron2.engine import HookBase

from polydet.engine.checkpoint import Checkpointer
from polydet.engine.trainer import Trainer
from polydet.sealed import save_sealed
from polydet.weight_files import CheckpointError, read_checkpoint

NAME = "model_best.pth"


class BestCheckpoint(HookBase):
    """Keeps ``model_best.pth``: the model with the highest value of a metric (``dataset/task/name``).

    Where a run averages its weights the average is kept, which is what was evaluated.
    """

    trainer: Trainer

    def __init__(self, checkpointer: Checkpointer, metric: str) -> None:
        self.checkpointer, self.metric = checkpointer, metric
        self.best, self.seen = -math.inf, -1

    def after_step(self) -> None:
        value, step = self.trainer.storage.latest().get(self.metric, (None, -1))
        if value is None or step == self.seen:
            return
        self.seen = step
        if value > self.best:
            self.best = value
            with self.trainer.averaged():
                state = {
                    "model": self.checkpointer.model.state_dict(),
                    **self.checkpointer.facts,
                    "metric": float(value),
                    "iteration": int(step),
                }
                save_sealed(state, Path(self.checkpointer.save_dir) / NAME)

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # as EvalHook's, which has just evaluated the last step
            self.after_step()

    def remember(self) -> None:
        """Let the file that is there be beaten first: a run that goes on past its end has one of its evaluation."""
        path = Path(self.checkpointer.save_dir) / NAME
        if path.is_file():
            with contextlib.suppress(CheckpointError):  # a damaged one is written anew
                self.best = max(self.best, float(read_checkpoint(path).get("metric", -math.inf)))

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best = state["best"]
