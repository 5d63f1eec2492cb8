"""Training: strict configs, the loop, checkpoints, evaluation and what a run leaves behind."""

from polydet.engine.checkpoint import Checkpointer, CheckpointError, LoadLedger, load_weights, read_checkpoint
from polydet.engine.config import ConfigError, apply_overrides, load_config, save_config
from polydet.engine.distributed import run_distributed
from polydet.engine.evaluate import evaluate
from polydet.engine.run import build_model, run
from polydet.engine.trainer import Trainer
from polydet.engine.trust import allow_calls

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "ConfigError",
    "LoadLedger",
    "Trainer",
    "allow_calls",
    "apply_overrides",
    "build_model",
    "evaluate",
    "load_config",
    "load_weights",
    "read_checkpoint",
    "run",
    "run_distributed",
    "save_config",
]
