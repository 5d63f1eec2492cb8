"""Model, loader, trainer and hooks of a run, from its config."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, open_dict
from torch import nn

from polydet.data import DatasetError
from polydet.engine.best import BestCheckpoint
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.distributed import resolve_device, seed_everything, wrap_model
from polydet.engine.ema import ModelEMA
from polydet.engine.errors import ConfigError
from polydet.engine.labels import check_rows, closed_names, names_by_name
from polydet.engine.loading import load_file
from polydet.engine.progress import build_writers, drop_metrics_from
from polydet.engine.running import RunningAverages
from polydet.engine.sentinels import FrozenSentinel, GroundTruthSentinel, ZeroLossSentinel
from polydet.engine.trainer import Trainer
from polydet.weight_files import read_checkpoint

logger = logging.getLogger(__name__)


def build_model(cfg: DictConfig) -> nn.Module:
    """The model of a config on its device, initialised from ``train.seed`` alone.

    Raises:
        ConfigError: values that a part of the model refuses.
    """
    seed_everything(int(cfg.train.seed))
    try:
        model = instantiate(cfg.model)
    except ValueError as error:
        if isinstance(error, (ConfigError, DatasetError)):
            raise
        raise ConfigError(f"the model cannot be built as the config says: {error}") from error
    return model.to(resolve_device(cfg.train.device))


def initialise(cfg: DictConfig, model: nn.Module, complete: bool = False) -> None:
    """Load ``train.init_checkpoint`` and log the ledger; does nothing when it is empty.

    Args:
        complete: nothing may keep its initial value (evaluation).
    """
    path = cfg.train.init_checkpoint
    if not path:
        return
    options = cfg.train.init
    checkpoint = read_checkpoint(path)
    names = names_by_name(checkpoint, cfg, model, list(options.class_names), complete)
    ledger = load_file(
        model,
        path,
        checkpoint=checkpoint,
        complete=complete,
        names=closed_names(cfg, model),
        key_map=locate(options.key_map.replace(":", ".")) if options.key_map else None,
        class_names=names,
        min_coverage=options.min_coverage,
        skip=list(options.skip),
        fresh=list(options.fresh),
    )
    if options.class_names:
        check_rows(names, ledger.transferred)


def build_trainer(cfg: DictConfig, model: nn.Module) -> Trainer:
    """Trainer, optimiser and average of the weights of ``model``."""
    train = cfg.train
    optimizer_cfg = cfg.optimizer.copy()
    optimizer_cfg.params.model = model
    optimizer = instantiate(optimizer_cfg)
    ema = None
    if train.ema.enabled:
        ema = ModelEMA(model, train.ema.decay, train.ema.warmup, train.ema.exponential_steps)
    _say_learning_rate_rule(cfg)
    return Trainer(
        wrap_model(model, train.ddp.find_unused_parameters),
        optimizer,
        dtype=train.amp.dtype,
        grad_accumulation=train.grad_accumulation,
        clip=train.clip_grad.kind,
        clip_value=train.clip_grad.value,
        ema=ema,
        seed=train.seed,
    )


def _say_learning_rate_rule(cfg: DictConfig) -> None:
    reference, batch = cfg.train.reference_batch_size, cfg.dataloader.train.get("total_batch_size", 0)
    if reference and batch and reference != batch:
        logger.warning(
            "optimizer.lr=%g is meant for a batch of %d; for %d the linear rule gives optimizer.lr=%g",
            cfg.optimizer.lr,
            reference,
            batch,
            cfg.optimizer.lr * batch / reference,
        )


def build_loader(cfg: DictConfig, start_iter: int = 0) -> Any:
    """The train loader at optimiser step ``start_iter``; ``total_batch_size`` counts all processes and accumulation.

    Raises:
        ConfigError: a batch that processes and accumulation do not divide.
    """
    loader_cfg, accumulation = cfg.dataloader.train.copy(), cfg.train.grad_accumulation
    total, parts = loader_cfg.total_batch_size, accumulation * comm.get_world_size()
    if total % parts:
        raise ConfigError(
            f"dataloader.train.total_batch_size={total} is not a multiple of {comm.get_world_size()} processes x "
            f"train.grad_accumulation={accumulation}"
        )
    with open_dict(loader_cfg):
        loader_cfg.total_batch_size = total // accumulation
        loader_cfg.start_iter = start_iter * accumulation
        loader_cfg.seed = cfg.train.seed
    return instantiate(loader_cfg)


def duration(cfg: DictConfig, loader: Any) -> tuple[int, float]:
    """(optimiser steps of the run, optimiser steps of an epoch)."""
    images = getattr(loader, "images_per_epoch", 0)
    per_epoch = images / cfg.dataloader.train.total_batch_size if images else 0.0
    if cfg.train.max_epochs <= 0:
        return int(cfg.train.max_iter), per_epoch
    if not per_epoch:
        raise ConfigError("train.max_epochs needs a train loader of known length; set train.max_iter instead")
    return math.ceil(cfg.train.max_epochs * per_epoch), per_epoch


def eval_period(train: DictConfig, iters_per_epoch: float) -> int:
    """Optimiser steps between evaluations: ``eval_period``, or ``eval_period_epochs`` to the nearest step.

    Raises:
        ConfigError: both are set, or epochs of unknown length.
    """
    epochs = train.eval_period_epochs
    if epochs <= 0:
        return int(train.eval_period)
    if train.eval_period > 0:
        raise ConfigError(
            f"train.eval_period={train.eval_period} and train.eval_period_epochs={epochs:g} exclude each other; "
            "set one of them to 0"
        )
    if not iters_per_epoch:
        raise ConfigError(
            "train.eval_period_epochs needs a train loader of known length; set train.eval_period instead"
        )
    return max(1, round(epochs * iters_per_epoch))


def register_hooks(
    cfg: DictConfig,
    trainer: Trainer,
    checkpointer: Checkpointer,
    output_dir: Path,
    span: tuple[int, int, float],
    test: Callable[[], Any],
    went_on: bool = False,
) -> None:
    """Schedule, sentinels, evaluation, writers and checkpoints, in the order in which they see a step.

    Args:
        cfg: the run's config.
        trainer: gets the hooks.
        checkpointer: of the run's folder.
        output_dir: the run's folder.
        span: first step, end of the run in steps, steps of an epoch (0 where unknown).
        test: evaluates.
        went_on: the run had come to an end before, and trains longer now.
    """
    start_iter, max_iter, iters_per_epoch = span
    train = cfg.train
    schedule_cfg = cfg.lr_multiplier.copy()
    with open_dict(schedule_cfg):
        schedule_cfg.max_iter, schedule_cfg.iters_per_epoch = max_iter, iters_per_epoch
    last_iter = start_iter - 1
    for group in trainer.optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    scheduler = LRMultiplier(trainer.optimizer, instantiate(schedule_cfg), max_iter, last_iter=last_iter)
    main = comm.is_main_process()
    if main:
        drop_metrics_from(output_dir / "metrics.json", start_iter - bool(trainer.unfinished), checkpointer.metrics)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            GroundTruthSentinel(train.sentinels.ground_truth),
            ZeroLossSentinel(train.sentinels.zero_loss),
            FrozenSentinel(train.sentinels.frozen_period),
            hooks.EvalHook(eval_period(train, iters_per_epoch), test) if len(cfg.dataloader.test_datasets) else None,
            BestCheckpoint(checkpointer, train.best_metric) if main and train.best_metric else None,
            *instantiate(list(train.hooks)),  # they see the evaluation, a checkpoint sees what they make of it
            hooks.PeriodicWriter(build_writers(output_dir, start_iter, max_iter), train.log_period) if main else None,
            RunningAverages(train.checkpoint_period),
            # last: what a checkpoint's step has to say is on disk before the checkpoint is
            _periodic_checkpointer(checkpointer, train, start_iter, max_iter) if main else None,
        ]
    )
    for hook in trainer._hooks:
        if went_on and isinstance(hook, BestCheckpoint):
            hook.remember()


def _periodic_checkpointer(checkpointer: Checkpointer, train: DictConfig, start_iter: int, max_iter: int) -> Any:
    """Detectron2's, which by itself would keep all checkpoints that were there before ``--resume``."""
    hook = hooks.PeriodicCheckpointer(checkpointer, train.checkpoint_period, max_iter, train.max_checkpoints)
    files = sorted(Path(checkpointer.save_dir).glob(f"model_{'[0-9]' * 7}.pth"))
    earlier = [file for file in files if int(file.stem.removeprefix("model_")) < start_iter]
    hook.recent_checkpoints = [str(file) for file in earlier]
    return hook
