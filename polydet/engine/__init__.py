"""Training: strict configs, the loop, checkpoints, evaluation and what a run leaves behind."""

from polydet.engine.build import build_model
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.config import ConfigError, apply_overrides, load_config, save_config
from polydet.engine.distributed import run_distributed
from polydet.engine.evaluate import evaluate
from polydet.engine.loading import LoadLedger, load_file, load_weights
from polydet.engine.run import run
from polydet.engine.trainer import Trainer
from polydet.engine.trust import allow_calls
from polydet.weight_files import CheckpointError, read_checkpoint

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
    "load_file",
    "load_weights",
    "read_checkpoint",
    "run",
    "run_distributed",
    "save_config",
]
