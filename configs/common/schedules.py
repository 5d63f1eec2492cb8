"""Learning-rate schedules; the engine fills in ``max_iter`` and ``iters_per_epoch``."""

from detectron2.config import LazyCall as L

from polydet.engine.optim import lr_schedule

step = L(lr_schedule)(kind="step", milestones=[], unit="iter", gamma=0.1, warmup_iters=0, warmup_factor=1e-3)
cosine = L(lr_schedule)(kind="cosine", end_factor=0.0, warmup_iters=0, warmup_factor=1e-3)
constant = L(lr_schedule)(kind="constant", warmup_iters=0, warmup_factor=1e-3)
