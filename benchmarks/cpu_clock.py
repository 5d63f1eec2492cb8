"""CPU seconds that a training takes, as a hook of this house's trainer."""

import time

from detectron2.engine.train_loop import HookBase


class CpuClock(HookBase):
    """Keeps the CPU seconds of this process from before the first step until after the last, the latest run's."""

    seconds = 0.0

    def before_train(self) -> None:
        self.start = time.process_time()

    def after_step(self) -> None:
        CpuClock.seconds = time.process_time() - self.start
