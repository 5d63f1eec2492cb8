"""A run from its config: data checked, model built, weights loaded, trained, evaluated, pictured."""

import json
import logging
import math
import platform
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, open_dict
from torch import nn

from polydet.data import prepare_cards
from polydet.engine.best import BestCheckpoint
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.config import REQUIRED_KEYS, ConfigError, stage_config
from polydet.engine.denormals import flush_denormals
from polydet.engine.distributed import resolve_device, seed_everything, wrap_model
from polydet.engine.ema import ModelEMA
from polydet.engine.evaluate import Results, evaluate
from polydet.engine.labels import (
    check_rows,
    closed_names,
    label_space,
    labels_of,
    names_by_name,
    refuse_other_labels,
)
from polydet.engine.loading import load_file
from polydet.engine.output import log_to, prepare_output
from polydet.engine.pictures import save_curves
from polydet.engine.portable import NAME as MODEL_FILE
from polydet.engine.portable import leave_model_file
from polydet.engine.progress import build_writers, drop_metrics_from
from polydet.engine.published import skip_published_weights
from polydet.engine.running import RunningAverages
from polydet.engine.sentinels import FrozenSentinel, GroundTruthSentinel, NonFiniteReplay, ZeroLossSentinel
from polydet.engine.trainer import DTYPES, NonFiniteError, Trainer, autocast
from polydet.engine.weight_files import read_checkpoint
from polydet.engine.weights import is_named, own_weights, use_weights
from polydet.files import write_text

logger = logging.getLogger(__name__)


@flush_denormals()
def run(cfg: DictConfig, resume: bool = False, eval_only: bool = False) -> Results:
    """Train and evaluate what ``cfg`` describes; called in every process.

    A config with ``stages`` (name -> config with the same keys, or ``{"run": call}``) runs them one after the other,
    each in its own folder under ``train.output_dir``; ``train.init_checkpoint="stage:NAME"`` is an earlier stage's
    final checkpoint.  Interpolations in a stage start at the stage's config, those of a ``run`` at the whole one.
    With ``resume`` finished stages are left alone; ``eval_only`` evaluates :func:`~polydet.engine.weights.own_weights`.

    Returns:
        results of the last evaluation, ``{dataset: {task: {metric: value}}}``, on the main process.
    """
    if "stages" in cfg:
        return _run_stages(cfg, resume, eval_only)
    missing = [key for key in REQUIRED_KEYS if key not in cfg]
    if missing:
        raise ConfigError(f"the config has no {', '.join(missing)}; a run needs {', '.join(REQUIRED_KEYS)}")
    output_dir = prepare_output(cfg, resume, eval_only)
    if resume and not eval_only and (output_dir / "DONE").is_file():
        logger.info("%s is finished", output_dir)
        return json.loads((output_dir / "results.json").read_text()) if (output_dir / "results.json").is_file() else {}
    started = time.time()
    _check_data(cfg, eval_only)
    if eval_only:
        results = _evaluate_only(cfg, output_dir)
    else:
        results = _train(cfg, output_dir, resume)
    if comm.is_main_process():
        done = output_dir / "DONE"
        name = "run_eval.json" if eval_only and done.is_file() else "run.json"  # training keeps its own
        _write_summary(cfg, output_dir / name, time.time() - started)
        if not eval_only:
            done.touch()
    return results


def _run_stages(cfg: DictConfig, resume: bool, eval_only: bool) -> Results:
    root = Path(cfg.train.output_dir)
    results: Results = {}
    own = {name: stage_config(cfg, str(name)) for name, stage in cfg.stages.items() if "run" not in stage}
    for name, stage in cfg.stages.items():
        if name not in own:
            if not eval_only and comm.is_main_process():
                log_to(root)
                logger.info("stage %s", name)
                instantiate(stage.run)
            comm.synchronize()
            continue
        stage = own[name]
        with open_dict(stage):
            if "source" in cfg:
                stage.source = {**cfg.source, "stage": str(name)}
                if "stage_starts" in stage.source:
                    stage.source.start = stage.source.pop("stage_starts").get(name)
            stage.train.output_dir = str(root / str(name))
            start = str(stage.train.init_checkpoint)
            if start.startswith("stage:") and (is_named(stage) or not eval_only):
                stage.train.init_checkpoint = str(root / start.removeprefix("stage:") / "model_final.pth")
        if eval_only and not stage.dataloader.test_datasets:
            continue
        results = run(stage, resume, eval_only)
    return results


def _check_data(cfg: DictConfig, eval_only: bool) -> None:
    """Every dataset must be there before anything is built; generated ones are made by the main process first."""
    names = list(cfg.dataloader.test_datasets)
    if not eval_only:
        names = [*cfg.dataloader.train.get("datasets", []), *names]
    if comm.is_main_process():
        prepare_cards(names)
    comm.synchronize()
    prepare_cards(names)


def build_model(cfg: DictConfig) -> nn.Module:
    """The model of a config on its device, initialised from ``train.seed`` alone."""
    seed_everything(int(cfg.train.seed))
    return instantiate(cfg.model).to(resolve_device(cfg.train.device))


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


def _evaluate_only(cfg: DictConfig, output_dir: Path) -> Results:
    use_weights(cfg, own_weights(cfg))
    skip_published_weights(cfg.model)
    model = build_model(cfg)
    initialise(cfg, model, complete=True)
    space = None if hasattr(model, "set_vocabulary") else label_space(cfg)
    precision = partial(autocast, next(model.parameters()).device, DTYPES[cfg.train.amp.dtype])
    return evaluate(cfg, model, output_dir, space, precision, cfg.train.pictures)


def _train(cfg: DictConfig, output_dir: Path, resume: bool) -> Results:
    refuse_other_labels(cfg)
    has_checkpoint = resume and (output_dir / "last_checkpoint").is_file()
    if has_checkpoint:
        skip_published_weights(cfg.model)
    model = build_model(cfg)
    if not has_checkpoint:
        initialise(cfg, model)
    trainer = _build_trainer(cfg, model)
    labels = label_space(cfg)
    facts = {"labels": labels_of(labels)} if labels is not None else {}
    checkpointer = Checkpointer(model, str(output_dir), facts=facts, trainer=trainer)
    start_iter = 0
    if comm.is_main_process():
        (output_dir / MODEL_FILE).unlink(missing_ok=True)  # of a shorter training in this folder
    if has_checkpoint:
        checkpointer.load(checkpointer.get_checkpoint_file())
        start_iter = trainer.iter + 1
    loader = build_loader(cfg, start_iter)
    max_iter, iters_per_epoch = _duration(cfg, loader)
    trainer.set_loader(loader)
    results: Results = {}

    def test() -> Results:
        with trainer.averaged():
            space = None if hasattr(model, "set_vocabulary") else label_space(cfg)
            results.update(evaluate(cfg, model, output_dir, space, trainer.autocast, cfg.train.pictures))
        return results

    _register_hooks(cfg, trainer, checkpointer, output_dir, (start_iter, max_iter, iters_per_epoch), test)
    logger.info("training from iteration %d to %d", start_iter, max_iter)
    try:
        trainer.train(start_iter, max_iter)
    except NonFiniteError as error:
        folder = NonFiniteReplay(output_dir).save(trainer, error)
        raise NonFiniteError(
            f"{error}; the step is saved: python tools/replay_step.py {folder}", error.values
        ) from error
    if comm.is_main_process():
        with trainer.averaged():
            leave_model_file(cfg, model, output_dir, results)
        save_curves(output_dir / "metrics.json", output_dir / "curves.png")
    return results


def _build_trainer(cfg: DictConfig, model: nn.Module) -> Trainer:
    train = cfg.train
    optimizer_cfg = cfg.optimizer.copy()
    optimizer_cfg.params.model = model
    optimizer = instantiate(optimizer_cfg)
    ema = ModelEMA(model, train.ema.decay, train.ema.warmup) if train.ema.enabled else None
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


def _duration(cfg: DictConfig, loader: Any) -> tuple[int, float]:
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
    epochs = train.get("eval_period_epochs", 0.0)
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


def _register_hooks(
    cfg: DictConfig,
    trainer: Trainer,
    checkpointer: Checkpointer,
    output_dir: Path,
    span: tuple[int, int, float],
    test: Any,
) -> None:
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
        drop_metrics_from(output_dir / "metrics.json", start_iter)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            GroundTruthSentinel(train.sentinels.ground_truth),
            ZeroLossSentinel(train.sentinels.zero_loss),
            FrozenSentinel(train.sentinels.frozen_period),
            hooks.EvalHook(eval_period(train, iters_per_epoch), test) if len(cfg.dataloader.test_datasets) else None,
            BestCheckpoint(checkpointer, train.best_metric) if main and train.best_metric else None,
            *instantiate(
                list(train.get("hooks", []))
            ),  # they see the evaluation, a checkpoint sees what they make of it
            hooks.PeriodicWriter(build_writers(output_dir, start_iter, max_iter), train.log_period) if main else None,
            RunningAverages(train.checkpoint_period),
            # last: what a checkpoint's step has to say is on disk before the checkpoint is
            _periodic_checkpointer(checkpointer, train, start_iter, max_iter) if main else None,
        ]
    )


def _periodic_checkpointer(checkpointer: Checkpointer, train: DictConfig, start_iter: int, max_iter: int) -> Any:
    """Detectron2's, which by itself would keep all checkpoints that were there before ``--resume``."""
    hook = hooks.PeriodicCheckpointer(checkpointer, train.checkpoint_period, max_iter, train.max_checkpoints)
    files = sorted(Path(checkpointer.save_dir).glob(f"model_{'[0-9]' * 7}.pth"))
    earlier = [file for file in files if int(file.stem.removeprefix("model_")) < start_iter]
    hook.recent_checkpoints = [str(file) for file in earlier]
    return hook


def _write_summary(cfg: DictConfig, file: Path, seconds: float) -> None:
    """What was run, versions, device, time and peak memory."""
    cuda = torch.cuda.is_available()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    scale = 1 if sys.platform == "darwin" else 1024
    source = cfg.get("source", {})
    summary = {
        "config_file": source.get("file"),
        "stage": source.get("stage"),
        "overrides": list(source.get("overrides", [])),
        "seconds": round(seconds, 1),
        "peak_host_memory_mib": round(peak * scale / 2**20),  # the largest of this process and its workers
        "peak_device_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "processes": comm.get_world_size(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }
    write_text(file, json.dumps(summary, indent=2))
    logger.info("run: %s", summary)
