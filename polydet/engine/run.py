"""A run from its config: data checked, model built, weights loaded, trained, evaluated, pictured."""

import json
import logging
import time
from functools import partial
from pathlib import Path

from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig, open_dict

from polydet.data import prepare_cards
from polydet.engine.build import build_loader, build_model, build_trainer, duration, initialise, register_hooks
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.config import REQUIRED_KEYS, ConfigError, flatten, stage_config
from polydet.engine.denormals import flush_denormals
from polydet.engine.distributed import refuse_disagreement
from polydet.engine.evaluate import Results, check_evaluators, evaluate
from polydet.engine.labels import closed_space, label_space, labels_of, refuse_other_labels
from polydet.engine.output import log_to, prepare_output
from polydet.engine.pictures import save_curves
from polydet.engine.portable import NAME as MODEL_FILE
from polydet.engine.portable import leave_model_file
from polydet.engine.published import skip_published_weights
from polydet.engine.sentinels import NonFiniteReplay
from polydet.engine.settings import conform
from polydet.engine.summary import write_summary
from polydet.engine.trainer import DTYPES, NonFiniteError, autocast
from polydet.engine.weights import is_named, own_weights, use_weights

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
    conform(cfg)  # a config that a program made has defaults, too
    refuse_disagreement(flatten(cfg))
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
        write_summary(cfg, output_dir / name, time.time() - started, eval_only)
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
    check_evaluators(cfg)
    names = list(cfg.dataloader.test_datasets)
    if not eval_only:
        names = [*cfg.dataloader.train.get("datasets", []), *names]
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
    has_checkpoint = resume and (output_dir / "last_checkpoint").is_file()
    if has_checkpoint:
        skip_published_weights(cfg.model)
    model = build_model(cfg)
    if not has_checkpoint:
        initialise(cfg, model)
    trainer = build_trainer(cfg, model)
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
    max_iter, iters_per_epoch = duration(cfg, loader)
    trainer.set_loader(loader)
    results: Results = {}

    def test() -> Results:
        with trainer.averaged():
            space = closed_space(cfg, model)
            results.update(evaluate(cfg, model, output_dir, space, trainer.autocast, cfg.train.pictures))
        return results

    register_hooks(cfg, trainer, checkpointer, output_dir, (start_iter, max_iter, iters_per_epoch), test)
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
