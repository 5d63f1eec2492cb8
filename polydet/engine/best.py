"""The best checkpoint by a metric.  Detectron2's own hook would make a resumed run start there."""

import math
from pathlib import Path

import torch
from detectron2.engine import HookBase

from polydet.engine.checkpoint import Checkpointer
from polydet.engine.trainer import Trainer
from polydet.files import whole_file


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
                with whole_file(Path(self.checkpointer.save_dir) / "model_best.pth") as path:
                    torch.save(state, path)

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # as EvalHook's, which has just evaluated the last step
            self.after_step()

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best = state["best"]
