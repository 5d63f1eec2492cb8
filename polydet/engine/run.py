"""A run from its config: data checked, model built, weights loaded, trained, evaluated, pictured."""

import contextlib
import json
import logging
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig, open_dict

from polydet.data import prepare_cards
from polydet.engine.build import build_loader, build_model, build_trainer, duration, initialise, register_hooks
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.config import REQUIRED_KEYS, ConfigError, flatten, stage_config
from polydet.engine.denormals import flush_denormals, same_rounding
from polydet.engine.distributed import deaths_named, on_main, refuse_disagreement
from polydet.engine.errors import RunError
from polydet.engine.evaluate import Results, check_evaluators, evaluate
from polydet.engine.folder import move_aside, open_folder, owned
from polydet.engine.labels import closed_space, label_space, labels_of, refuse_other_labels
from polydet.engine.nonfinite import NonFiniteError
from polydet.engine.output import log_to, prepare_output, write_settings
from polydet.engine.pictures import save_curves
from polydet.engine.portable import NAME as MODEL_FILE
from polydet.engine.portable import leave_model_file
from polydet.engine.published import skip_published_weights
from polydet.engine.resume import (
    check_span,
    complete,
    find_checkpoint,
    is_finished,
    reopen,
    restore,
    save_and_leave,
    say_differences,
)
from polydet.engine.sentinels import NonFiniteReplay
from polydet.engine.settings import conform
from polydet.engine.stopping import Interrupted, at_once, watched
from polydet.engine.summary import write_summary
from polydet.engine.trainer import DTYPES, autocast
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

    Raises:
        RunError: another run trains in the folder, or there is nothing to go on with.
        Interrupted: SIGTERM or SIGUSR1 came; what was trained is saved.
    """
    with watched(), same_rounding(), deaths_named():
        return (_run_stages if "stages" in cfg else _run_one)(cfg, resume, eval_only)


def _run_one(cfg: DictConfig, resume: bool, eval_only: bool) -> Results:
    missing = [key for key in REQUIRED_KEYS if key not in cfg]
    if missing:
        raise ConfigError(f"the config has no {', '.join(missing)}; a run needs {', '.join(REQUIRED_KEYS)}")
    conform(cfg)  # a config that a program made has defaults, too
    refuse_disagreement(flatten(cfg))
    folder = open_folder(cfg)
    started = time.time()
    if eval_only:
        prepare_output(cfg, resume, eval_only)
        _check_data(cfg, eval_only)
        results = _evaluate_only(cfg, folder)
        if comm.is_main_process():
            name = "run_eval.json" if (folder / "DONE").is_file() else "run.json"  # training keeps its own
            write_summary(cfg, folder / name, time.time() - started, eval_only)
        return results
    with owned(folder):
        if resume and on_main(is_finished, cfg, folder):
            logger.info("%s is finished", folder)
            return on_main(_results_of, folder)
        prepare_output(cfg, resume, eval_only)
        _check_data(cfg, eval_only)
        results = _train(cfg, folder, resume)
        if comm.is_main_process():
            write_summary(cfg, folder / "run.json", time.time() - started)
            write_text(folder / "DONE", "")
    return results


def _results_of(folder: Path) -> Results:
    """What a finished run left."""
    file = folder / "results.json"
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise RunError(
            f"{file} of the finished run is damaged ({error}): evaluate it again with --eval-only"
        ) from error


def _run_stages(cfg: DictConfig, resume: bool, eval_only: bool) -> Results:
    root = open_folder(cfg)
    own = {name: stage_config(cfg, str(name)) for name, stage in cfg.stages.items() if "run" not in stage}
    with contextlib.nullcontext() if eval_only else owned(root):
        if not (resume or eval_only):
            _move_stages(root, own)
        return _in_order(cfg, own, root, resume, eval_only)


def _move_stages(root: Path, names: Iterable[str]) -> None:
    """Stages of an earlier run, which a killed one of this would find finished with ``--resume``."""
    for folder in [root / str(name) for name in names]:
        if folder.is_dir() and (moved := on_main(move_aside, folder)):
            logger.info("an earlier run was in %s: its files are in %s, which nothing needs", folder, moved)


def _in_order(cfg: DictConfig, own: dict[str, DictConfig], root: Path, resume: bool, eval_only: bool) -> Results:
    results: Results = {}
    for name, stage in cfg.stages.items():
        if name not in own:
            if not eval_only and comm.is_main_process():
                log_to(root)
                logger.info("stage %s", name)
                with at_once():
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
        results = _run_one(stage, resume, eval_only)
    return results


def _check_data(cfg: DictConfig, eval_only: bool) -> None:
    """Every dataset must be there before anything is built; generated ones are made by the main process first."""
    check_evaluators(cfg)
    names = list(cfg.dataloader.test_datasets)
    if not eval_only:
        names = [*cfg.dataloader.train.get("datasets", []), *names]
    with at_once():
        if comm.is_main_process():
            prepare_cards(names)
        comm.synchronize()
        prepare_cards(names)


def _evaluate_only(cfg: DictConfig, output_dir: Path) -> Results:
    use_weights(cfg, own_weights(cfg))
    skip_published_weights(cfg.model)
    model = build_model(cfg)
    initialise(cfg, model, complete=True)
    precision = partial(autocast, next(model.parameters()).device, DTYPES[cfg.train.amp.dtype])
    return evaluate(cfg, model, output_dir, closed_space(cfg, model), precision, cfg.train.pictures)


def _train(cfg: DictConfig, output_dir: Path, resume: bool) -> Results:
    refuse_other_labels(cfg)
    with at_once():
        found = find_checkpoint(output_dir) if resume else None
        if found is not None:
            skip_published_weights(cfg.model)
        model = build_model(cfg)
        if found is None:
            initialise(cfg, model)
        trainer = build_trainer(cfg, model)
        labels = label_space(cfg)
        facts = {"labels": labels_of(labels)} if labels is not None else {}
        checkpointer = Checkpointer(model, str(output_dir), facts=facts, trainer=trainer)
        start_iter = 0
        if found is not None:
            restore(checkpointer, trainer, *found)
            start_iter = trainer.iter + 1
        loader = build_loader(cfg, start_iter)
        max_iter, iters_per_epoch = duration(cfg, loader)
        trainer.set_loader(loader)
        on_main(check_span, output_dir, start_iter, max_iter)
    results: Results = {}

    def test() -> Results:
        with trainer.averaged():
            space = closed_space(cfg, model)
            results.update(evaluate(cfg, model, output_dir, space, trainer.autocast, cfg.train.pictures))
        return results

    went_on = _begin(cfg, output_dir, resume, found[0] if found else None, (start_iter, max_iter))
    del found
    register_hooks(cfg, trainer, checkpointer, output_dir, (start_iter, max_iter, iters_per_epoch), test, went_on)
    logger.info("training from iteration %d to %d", start_iter, max_iter)
    try:
        trainer.train(start_iter, max_iter)
    except Interrupted:
        save_and_leave(trainer, checkpointer)
        raise
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


def _begin(cfg: DictConfig, folder: Path, resume: bool, start: Path | None, span: tuple[int, int]) -> bool:
    """All is checked: from here on the folder is that of this config; whether it had ended before."""
    had_ended = (folder / "model_final.pth").is_file() and span[0] < span[1]
    comm.synchronize()
    if comm.is_main_process():
        if start is not None:
            say_differences(cfg, folder)
            if span[0] < span[1]:
                reopen(folder, start, span[0])
            else:
                complete(folder, start)
        if resume:
            write_settings(cfg, folder)
        (folder / MODEL_FILE).unlink(missing_ok=True)  # of a shorter training in this folder
    return had_ended
